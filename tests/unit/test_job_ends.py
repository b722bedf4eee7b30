"""How a job ends: its exit code, what it says, what it was given to act on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayrec import cli
from rayrec.config import Config
from rayrec.errors import InputError
from rayrec.training import loop

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def raising(error: BaseException) -> Callable[[], None]:
    def job() -> None:
        raise error

    return job


def test_what_keeps_nothing_says_so_when_it_is_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--run", "r", "--system", "sasrec", "--sessions", "s.parquet", "--out", "o.parquet"]
    monkeypatch.setattr(sys, "argv", ["recommend.py", *options])

    def act(order: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.main_for_recommendation("", act)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; nothing was written; the same command begins again\n"


@pytest.mark.parametrize(
    ("job", "code", "line"),
    [
        (lambda: None, 0, ""),
        (raising(InputError("t.csv, line 3:\n  bad\tvalue")), 2, "error: t.csv, line 3: bad value\n"),
        (raising(KeyboardInterrupt()), 130, "interrupted; the same command goes on from the last checkpoint\n"),
        (raising(RuntimeError("disk full")), 1, "failed: disk full (RAYREC_TRACEBACK=1 shows where)\n"),
    ],
    ids=["done", "bad input", "interrupted", "failed"],
)
def test_the_exit_code_says_how_it_ended(
    job: Callable[[], None], code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYREC_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.run(job)
    assert ended.value.code == code
    assert capsys.readouterr() == ("", line)


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="disk full"):
        cli.run(raising(RuntimeError("disk full")))
    with pytest.raises(SystemExit):  # bad input has no use for one
        cli.run(raising(InputError("x")))


def test_what_a_worker_refuses_is_told_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker returns the message instead of raising, since a restart of the group would not mend it."""

    monkeypatch.setattr(loop, "is_complete", lambda job: False)

    def refuse(*_: Any) -> None:
        raise InputError("checkpoints/step-8: damaged or cut short")

    monkeypatch.setattr(loop, "Stage", refuse)
    assert loop.train_worker({"jobs": [None], "board": None})["error"] == "checkpoints/step-8: damaged or cut short"


def test_a_job_acts_on_the_configuration_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Config] = []
    for arguments in ([], ["--set", "seed=4"], ["--config", str(CONFIGS / "ml100k_smollm2.yaml")]):
        with pytest.raises(SystemExit) as ended:
            cli.main("", CONFIGS / "smoke.yaml", seen.append, arguments)
        assert ended.value.code == 0
    assert [(config.name, config.seed) for config in seen] == [("smoke", 0), ("smoke", 4), ("ml100k-smollm2", 0)]
