"""Resume: a stage's whole state, free of world size and ZeRO stage, so that it goes on exactly where it was.

``checkpoints/step-NNNNNNNN/``: ``state.safetensors`` (fp32 weights, both Adam moments, the best weights so far: 16
bytes a trainable parameter) and ``progress.json``. The folder appears in one rename; the newest two are kept.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from rayrec import storage
from rayrec.errors import InputError

_log = logging.getLogger("rayrec")
STATE, MARK = "state.safetensors", "progress.json"
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a stage stands. Nothing random is in it: order and draws are functions of the step."""

    step: int = 0  # optimizer steps taken
    best: float | None = None  # of the validation metric that chooses, `StageJob.judged_by`
    best_step: int = 0
    stale: int = 0  # evaluations since the best
    stopped_early: bool = False
    seconds: float = 0.0  # spent in the loop, all attempts together
    loss_scale: Mapping[str, float] = field(default_factory=dict)

    def judged(self, value: float) -> "Progress":
        """Progress after an evaluation; an undefined value (NaN) is never the best."""
        if not math.isnan(value) and (self.best is None or value > self.best):
            return replace(self, best=value, best_step=self.step, stale=0)
        return replace(self, stale=self.stale + 1)


class _DamageError(Exception):
    """A checkpoint's files are there and are not what was written."""


@dataclass(frozen=True)
class Resumed:
    progress: Progress
    state: dict[str, Tensor]


def step_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


def save(stage_folder: str, progress: Progress, state: Mapping[str, Tensor]) -> None:
    """Publish a checkpoint, then delete all but the newest ones, and what a killed process left half-written.

    One process of the group saves; nobody else writes into the stage's folder.
    """
    folder = storage.join(stage_folder, "checkpoints")
    content = safetensors.torch.save(dict(state))
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "progress": asdict(progress)}
    mark = json.dumps(facts, indent=2).encode()
    storage.publish(storage.join(folder, step_name(progress.step)), {STATE: content, MARK: mark}, mark=MARK)
    for name in _complete(folder)[:-KEPT]:
        storage.delete(storage.join(folder, name))
    for place in (stage_folder, folder):
        for name in storage.names(place):
            if name.endswith(".partial"):
                storage.delete(storage.join(place, name))


def latest(stage_folder: str) -> Resumed | None:
    """The newest complete checkpoint; None where the stage has none yet.

    Raises:
        InputError: it was complete once but is damaged now.
    """
    folder = storage.join(stage_folder, "checkpoints")
    for name in storage.names(folder):
        if name.endswith(".partial") or not storage.exists(storage.join(folder, name, MARK)):
            _log.warning(
                "%s: an incomplete checkpoint, left by an interrupted run; skipped", storage.join(folder, name)
            )
    complete = _complete(folder)
    return (
        _read(storage.join(folder, complete[-1]), "delete this folder to go on from the one before it")
        if complete
        else None
    )


def given(folder: str) -> Resumed:
    """The checkpoint in a folder that a person named.

    Raises:
        InputError: there is none, or it is damaged.
    """
    check_given(folder)
    return _read(folder, "name another one")


def check_given(folder: str) -> str:
    """The sha256 that a checkpoint's mark vouches for, without reading its state; raises as ``given``."""
    path = storage.join(folder, MARK)
    if not storage.exists(path):
        raise InputError(
            f"{folder}: no checkpoint here; name a folder store/{{stage}}/{{fingerprint}}/checkpoints/step-…"
        )
    try:
        return str(json.loads(storage.read_text(path))["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged or cut short; name another checkpoint") from error


def _read(where: str, mend: str) -> Resumed:
    try:
        content = storage.read_bytes(storage.join(where, STATE))
        progress = _progress(storage.read_text(storage.join(where, MARK)), content)
        return Resumed(progress, safetensors.torch.load(content))
    except (FileNotFoundError, _DamageError, SafetensorError) as error:  # any other trouble of the storage is its own
        raise InputError(f"{where}: the checkpoint is damaged or cut short; {mend}") from error


def _progress(mark: str, content: bytes) -> Progress:
    """What ``mark`` says, once it vouches for ``content``.

    Raises:
        _DamageError: it does not, or says something else.
    """
    try:
        facts = json.loads(mark)
        vouched, told = facts["sha256"], facts["progress"]
        progress = Progress(**told)
    except (ValueError, KeyError, TypeError) as error:
        raise _DamageError(f"{MARK}: {error}") from error
    if hashlib.sha256(content).hexdigest() != vouched:
        raise _DamageError(f"the sha256 of {STATE} is not the one in {MARK}")
    return progress


def _complete(folder: str) -> list[str]:
    entries = [n for n in storage.names(folder) if n.startswith("step-") and not n.endswith(".partial")]
    return [name for name in entries if storage.exists(storage.join(folder, name, MARK))]
