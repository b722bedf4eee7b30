"""Configurations: those that are shipped, some that are made, and how one is refused."""

from pathlib import Path

import pytest

from rayrec.config import Config
from rayrec.errors import InputError
from rayrec.settings import load
from rayrec.stages import Task

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))  # search/: test_search.py
OF_CLICKS = [path for path in CONFIGS if load(path).data.task is Task.CLICK]


def configured(*assignments: str) -> Config:
    return load(None, assignments)


def refused(*assignments: str) -> str:
    with pytest.raises(InputError) as caught:
        configured(*assignments)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("--set")
    return message
