"""Puts this folder on the path of every test, for ``pages``, ``processes`` and ``engines``."""

import pytest

# Before they are imported: their asserts then show values, as those of a test do.
pytest.register_assert_rewrite("engines", "origins", "pages", "processes")

import processes  # noqa: E402


@pytest.fixture(scope="session")
def job_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a job: a cache of its own, nothing of this process's Ray."""
    return processes.environment(tmp_path_factory.mktemp("cache"))
