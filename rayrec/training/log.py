"""``progress.jsonl``: one line a step, evaluations among them, without gaps or repeats across restarts."""

import json
import resource
import time
from typing import Any

import torch

from rayrec import storage

_NAME = "progress.jsonl"


class ProgressLog:
    """Kept in memory and rewritten whole at each checkpoint, which every kind of storage can do.

    What is lost with a killed process is what the resumed one does again.
    """

    def __init__(self, stage_folder: str, resume_step: int) -> None:
        """Keep what an earlier attempt wrote up to ``resume_step``."""
        self._uri = storage.join(stage_folder, _NAME)
        self.lines = [line for line in recorded(stage_folder) if line["step"] <= resume_step]

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def write(self) -> None:
        storage.write_text(self._uri, "".join(json.dumps(line) + "\n" for line in self.lines))


def recorded(stage_folder: str) -> list[dict[str, Any]]:
    """The lines on record of a stage, none where it has not begun."""
    uri = storage.join(stage_folder, _NAME)
    return [json.loads(line) for line in storage.read_text(uri).splitlines()] if storage.exists(uri) else []


class Stopwatch:
    """Splits a loop's wall time into waiting for data and the rest."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return elapsed


def peak_memory_gb() -> float:
    """Peak resident memory of this process in GB; on a GPU, peak allocated device memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
