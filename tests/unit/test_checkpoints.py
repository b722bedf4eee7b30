"""A checkpoint comes back whole or is refused; the newest are kept, and what a killed process left is swept."""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from remains import Killed, everything
from torch import Tensor

from rayrec import storage
from rayrec.config.model import EncoderConfig, MapperConfig
from rayrec.errors import InputError
from rayrec.models.mapper import Mapper
from rayrec.models.sasrec import SASRec
from rayrec.models.sasrecllm import SASRecLLM, trainable
from rayrec.stages import Part
from rayrec.training import checkpoint
from rayrec.training.checkpoint import Progress


def state(step: int) -> dict[str, Tensor]:
    return {"weights/encoder.x": torch.full((3, 2), float(step)), "exp_avg/encoder.x": torch.ones(3, 2)}


def saved(folder: Path, *steps: int) -> str:
    for step in steps:
        checkpoint.save(str(folder), Progress(step=step), state(step))
    return str(folder)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    assert checkpoint.latest(str(tmp_path)) is None
    progress = Progress(
        step=7, best=0.71, best_step=5, stale=1, stopped_early=True, seconds=1.5, loss_scale={"cur_scale": 4096.0}
    )
    checkpoint.save(str(tmp_path), progress, state(7))
    found = checkpoint.latest(str(tmp_path))
    assert found is not None and found.progress == progress
    assert found.state.keys() == state(7).keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state(7).items())


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    folder = saved(tmp_path, 5, 10, 15, 100)
    assert storage.names(f"{folder}/checkpoints") == ["step-00000015", "step-00000100"]
    found = checkpoint.latest(folder)
    assert found is not None and found.progress.step == 100


def test_incomplete_checkpoints_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path, 5)
    half = tmp_path / "checkpoints" / "step-00000010"
    half.mkdir()
    (half / checkpoint.STATE).write_bytes(b"half")
    killed = tmp_path / "checkpoints" / "step-00000015.1234abcd.partial"
    killed.mkdir()
    with caplog.at_level(logging.WARNING, "rayrec"):
        found = checkpoint.latest(folder)
    assert found is not None and found.progress.step == 5
    assert len(caplog.messages) == 2
    assert all(str(path) in "\n".join(caplog.messages) for path in (half, killed))
    assert "skipped" in caplog.messages[0]


def test_a_checkpoint_killed_half_way_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, 5)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", killed)
        saved(tmp_path, 10)
    found = checkpoint.latest(folder)
    assert found is not None and found.progress.step == 5


def rewrite(mark: Path, **changes: Any) -> None:
    mark.write_text(json.dumps(json.loads(mark.read_text()) | changes))


def other_bytes(state: Path, content: bytes) -> None:
    """Bytes that the mark vouches for."""
    state.write_bytes(content)
    rewrite(state.with_name(checkpoint.MARK), sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (checkpoint.STATE, lambda path: path.write_bytes(path.read_bytes()[:-3])),
        (checkpoint.STATE, lambda path: path.write_bytes(b"")),
        (checkpoint.STATE, Path.unlink),
        (checkpoint.MARK, lambda path: path.write_bytes(path.read_bytes()[:-3])),
        (checkpoint.MARK, lambda path: path.write_text("{}")),
        (checkpoint.MARK, lambda path: rewrite(path, progress=None)),
        (checkpoint.MARK, lambda path: rewrite(path, progress={"stride": 1})),
        (checkpoint.STATE, lambda path: other_bytes(path, b"no tensors")),
    ],
    ids=["cut", "empty", "gone", "mark cut", "mark empty", "no progress", "other progress", "no tensors"],
)
def test_a_damaged_checkpoint_is_refused(name: str, damage: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, 5, 10)
    path = tmp_path / "checkpoints" / "step-00000010" / name
    damage(path)
    with pytest.raises(InputError, match="damaged or cut short; delete this folder") as caught:
        checkpoint.latest(folder)
    assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)
    storage.delete(str(path.parent))  # as the message says
    found = checkpoint.latest(folder)
    assert found is not None and found.progress.step == 5


def test_a_storage_that_fails_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice would be to delete a good checkpoint."""
    folder = saved(tmp_path, 5, 10)

    def fail(uri: str) -> bytes:
        raise OSError("the connection was reset")

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(OSError, match="connection was reset"):
        checkpoint.latest(folder)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path, 5)
    path = tmp_path / "checkpoints" / "step-00000005" / checkpoint.STATE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.latest(folder)


def test_a_checkpoint_is_small(tmp_path: Path) -> None:
    """Weights, two moments and the best so far: 16 bytes a trainable parameter, and at most 1 MB beside them."""
    encoder = SASRec(EncoderConfig(), items=3706, max_len=50)
    mapper = Mapper(MapperConfig(), width=64, hidden=576)
    trained = trainable(SASRecLLM(encoder, mapper, None), (Part.ENCODER, Part.MAPPER))
    kinds = ("weights", "exp_avg", "exp_avg_sq", "best")
    whole = {f"{kind}/{name}": p.detach().float().clone() for kind in kinds for name, p in trained.items()}
    checkpoint.save(str(tmp_path), Progress(step=1), whole)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    parameters = sum(p.numel() for p in trained.values())
    assert parameters > 500_000
    assert 16 * parameters < size <= 16 * parameters + 1_000_000


def test_progress_keeps_the_best() -> None:
    progress, seen = Progress(), []
    for step, value in enumerate([math.nan, 0.6, 0.5, math.nan, 0.7, 0.7], start=1):
        progress = Progress(**(vars(progress) | {"step": step})).judged(value)
        seen.append((progress.best, progress.best_step, progress.stale))
    assert seen == [(None, 0, 1), (0.6, 2, 0), (0.6, 2, 1), (0.6, 2, 2), (0.7, 5, 0), (0.7, 5, 1)]


def test_what_a_killed_process_left_is_swept_by_the_next_save(tmp_path: Path) -> None:
    left = ("checkpoints/step-00000002.aa.partial/state.safetensors", "progress.jsonl.bb.partial")
    for name in left:
        storage.write_bytes(f"{tmp_path}/{name}", b"half")
    saved(tmp_path, 3)
    assert {path.parts[0] for path in map(Path, everything(tmp_path))} == {"checkpoints"}
    assert {Path(name).parts[1] for name in everything(tmp_path)} == {"step-00000003"}


# A checkpoint that a person names


def test_a_named_checkpoint_comes_back_or_is_refused(tmp_path: Path) -> None:
    folder = f"{saved(tmp_path, 5)}/checkpoints/step-00000005"
    assert checkpoint.given(folder).progress.step == 5
    with pytest.raises(InputError, match="nowhere: no checkpoint here; name a folder store/"):
        checkpoint.given(str(tmp_path / "nowhere"))
    Path(folder, checkpoint.STATE).write_bytes(b"other")
    with pytest.raises(InputError, match="damaged or cut short; name another one"):
        checkpoint.given(folder)
