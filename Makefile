# Everything runs in .venv, which `make pipeline` and `make test` set up themselves.
PYTHON ?= python3

.PHONY: help pipeline test lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

pipeline: .venv/.ready  ## set up, then train and evaluate with the embedded configuration
	.venv/bin/python jobs/full_pipeline.py

test: lint  ## set up, then lint, types and the default tests
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile tests/unit
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --durations 15 tests/ray tests/gpu

lint: .venv/.ready  ## set up, then style, types and import layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy rayrec jobs
	.venv/bin/lint-imports

# The stamp is younger than what it was made from, so a changed dependency is installed by the next `make`.
# pip comes first: what follows needs its --build-constraint, which also pins the tools that build an sdist.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null || { \
	  echo "rayrec needs Python 3.10, 3.11 or 3.12 and $(PYTHON) is none; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version): once, a few minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -qq -c constraints.txt pip
	.venv/bin/python -m pip install -qq -c constraints.txt --build-constraint constraints.txt -e '.[dev]'
	@touch $@

# Not runs/: those are results, and yours.
clean:  ## remove .venv, caches and build products; results in runs/ stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find rayrec jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
