"""What lies in the storage is whole or absent: published folders, checkpoints, trained parts."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayrec import scoring, storage
from rayrec.config import Config, EncoderConfig, MapperConfig
from rayrec.errors import InputError
from rayrec.models.mapper import Mapper
from rayrec.models.sasrec import SASRec
from rayrec.models.sasrecllm import SASRecLLM, trainable
from rayrec.run import Run
from rayrec.stages import SYSTEMS, Part, Stream, SystemName
from rayrec.training import checkpoint
from rayrec.training.checkpoint import Progress
from rayrec.training.parts import load_part, read_card, save_part

FILES = {"mark.json": b"{}", "a.bin": b"a" * 1000, "z.bin": b"z" * 1000}


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Storage


def test_what_is_written_is_read(tmp_path: Path) -> None:
    uri = f"{tmp_path}/a/b/c.txt"
    assert not storage.exists(uri)
    storage.write_text(uri, "ä\n")
    storage.write_text(uri, "ö\n")
    assert storage.exists(uri) and storage.read_text(uri) == "ö\n" and storage.read_bytes(uri) == "ö\n".encode()
    (tmp_path / "local").write_bytes(b"x" * 10)
    storage.write_file(f"{tmp_path}/d/e", tmp_path / "local")
    assert storage.read_bytes(f"{tmp_path}/d/e") == b"x" * 10
    assert storage.names(str(tmp_path)) == ["a", "d", "local"] and storage.names(f"{tmp_path}/none") == []
    for gone in ("a", "local", "none"):
        storage.delete(f"{tmp_path}/{gone}")
    assert everything(tmp_path) == {"d/e"}


def test_a_folder_is_uploaded_as_it_is(tmp_path: Path) -> None:
    storage.write_text(f"{tmp_path}/from/sub/x", "1")
    storage.write_text(f"{tmp_path}/from/y", "2")
    storage.upload(tmp_path / "from", f"{tmp_path}/to")
    assert everything(tmp_path / "to") == {"sub/x", "y"}


@pytest.fixture(params=["path", "uri"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A folder to publish, by its path (one rename) and by a URI (its mark last), as on an object store."""
    folder = tmp_path / "published"
    if request.param == "path":
        return str(folder), folder
    folder.mkdir()  # object stores need no folders
    return folder.as_uri(), folder


def test_published_is_whole(place: tuple[str, Path]) -> None:
    uri, folder = place
    storage.publish(uri, FILES, mark="mark.json")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    storage.publish(uri, FILES | {"a.bin": b"new"}, mark="mark.json")
    assert (folder / "a.bin").read_bytes() == b"new"
    assert everything(folder.parent) == {f"published/{name}" for name in FILES}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
def test_a_mark_is_never_without_its_files(
    place: tuple[str, Path], writes: int, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any number of files: the mark is absent, or all files are those that it was written with."""
    uri, folder = place
    if before:
        storage.publish(uri, FILES, mark="mark.json")
    left = writes
    write_path, write_uri = Path.write_bytes, storage.write_bytes

    def counted(write: Any) -> Any:
        def limited(*arguments: Any) -> Any:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return write(*arguments)

        return limited

    monkeypatch.setattr(Path, "write_bytes", counted(write_path))
    monkeypatch.setattr(storage, "write_bytes", counted(write_uri))
    with pytest.raises(Killed):
        storage.publish(uri, dict.fromkeys(FILES, b"new"), mark="mark.json")
    if (folder / "mark.json").exists():
        assert before and {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    elif uri == str(folder):
        assert not before and not folder.exists()


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{tmp_path}/x"
    storage.write_bytes(uri, b"old")
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(storage.read_bytes(uri))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    storage.write_bytes(uri, b"new" * 1000)
    assert seen == [b"old"] and storage.read_bytes(uri) == b"new" * 1000
    assert everything(tmp_path) == {"x"}


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    storage.check_writable(f"{tmp_path}/runs")
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("uri", ["{}/file", "{}/file/below", "nosuch://bucket/run"])
def test_a_place_that_cannot_be_written_is_named(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written") as caught:
        storage.check_writable(uri.format(tmp_path))
    message = str(caught.value)
    assert uri.format(tmp_path) in message and "set `storage`" in message and "\n" not in message
    assert everything(tmp_path) == {"file"}


def test_uris_stay_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs") == str(tmp_path.resolve() / "runs")
    assert storage.absolute("s3://bucket/runs/") == "s3://bucket/runs"
    assert storage.join("s3://bucket/", "a", "b") == "s3://bucket/a/b"


# A run's name


def run(folder: Path, **changes: Any) -> Run:
    return Run(Config.model_validate({"name": "r", "storage": str(folder), **changes}))


def test_a_name_stands_for_one_configuration(tmp_path: Path) -> None:
    first = run(tmp_path)
    first.bind()
    storage.write_text(first.path("data", "manifest.json"), "{}")
    held = storage.read_text(first.path("config.yaml"))
    run(tmp_path, cluster={"workers": 4}).bind()  # how to run may change
    with pytest.raises(InputError) as caught:
        run(tmp_path, seed=1, encoder={"width": 32}).bind()
    message = str(caught.value)
    assert "the name 'r' already holds another configuration" in message
    assert "encoder.width: 64 -> 32; seed: 0 -> 1" in message and "choose another name or delete" in message
    assert storage.read_text(first.path("config.yaml")) == held


def test_a_mistake_mended_before_there_is_data_needs_no_other_name(tmp_path: Path) -> None:
    run(tmp_path, data={"dataset": "table", "sources": ["typo.csv"]}).bind()
    mended = run(tmp_path, data={"dataset": "table", "sources": ["right.csv"]})
    mended.bind()
    assert "right.csv" in storage.read_text(mended.path("config.yaml"))


def test_nothing_is_prepared_yet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data/manifest\.json: the data is not prepared yet; run jobs/prepare\.py"):
        _ = run(tmp_path).manifest


def prepared(of: Run) -> None:
    """As if its data were prepared."""
    counts = {split: {"rows": 9} for split in ("train", "valid", "test")}
    manifest = {"items": 3, "mean_liked_per_training_user": 2.4, "splits": counts, "files": {"train.parquet": "a1"}}
    storage.write_text(of.path("data", "manifest.json"), json.dumps(manifest))
    storage.write_text(of.path("data", "prompts", "prompts.json"), json.dumps({"files": {"train.parquet": "b2"}}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"encoder": "tune_hybrid/encoder", "mapper": "tune_hybrid/mapper", "lora": "tune_lora/lora"}),
        (
            {"trains": ["mapper"]},
            {"encoder": "pretrain_encoder/encoder", "mapper": "tune_hybrid/mapper", "lora": "tune_lora/lora"},
        ),
        (
            {"starts_from": {"lora": "OTHER/lora", "encoder": "OTHER/encoder"}},
            {"encoder": "tune_hybrid/encoder", "mapper": "tune_hybrid/mapper", "lora": "OTHER/lora"},
        ),
    ],
    ids=["all", "mapper only", "from elsewhere"],
)
def test_a_system_is_scored_with_the_parts_it_was_trained_with(
    changes: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    other = f"{tmp_path}/other"
    elsewhere = {part: folder.replace("OTHER", other) for part, folder in changes.get("starts_from", {}).items()}
    of = run(tmp_path, stages={"tune_hybrid": changes | {"starts_from": elsewhere}})
    prepared(of)
    trained = [f"tune_hybrid/{part}" for part in changes.get("trains", ["encoder", "mapper"])]
    for part in (*trained, "pretrain_encoder/encoder", "tune_lora/lora"):
        storage.write_text(of.path("parts", part, "part.json"), json.dumps({"sha256": part}))
    for folder in elsewhere.values():
        storage.write_text(f"{folder}/part.json", json.dumps({"sha256": folder}))
    task = scoring._task(of, SYSTEMS[SystemName.SASRECLLM], Stream.HYBRID_PROMPTS)
    places = {part.value: folder.replace(other, "OTHER") for part, folder in task.job.parts.items()}
    found = {part: place.removeprefix(of.path("parts") + "/") for part, place in places.items()}
    assert found == expected
    assert (task.job.facts.items, task.job.facts.max_len) == (3, 2)


# Checkpoints


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


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (checkpoint.STATE, lambda path: path.write_bytes(path.read_bytes()[:-3])),
        (checkpoint.STATE, lambda path: path.write_bytes(b"")),
        (checkpoint.STATE, Path.unlink),
        (checkpoint.MARK, lambda path: path.write_bytes(path.read_bytes()[:-3])),
        (checkpoint.MARK, lambda path: path.write_text("{}")),
    ],
    ids=["cut", "empty", "gone", "mark cut", "mark empty"],
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


# Parts


def model(width: int = 16, items: int = 10, blocks: int = 1) -> SASRecLLM:
    torch.manual_seed(width)
    encoder = SASRec(EncoderConfig(width=width, blocks=blocks), items=items, max_len=5)
    return SASRecLLM(encoder, Mapper(MapperConfig(expansion=2), width=width, hidden=24), None)


def weights(of: SASRecLLM, part: Part = Part.ENCODER) -> Mapping[str, Tensor]:
    return {name: parameter.detach() for name, parameter in of.parts()[part].items()}


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    folder = f"{tmp_path}/parts/pretrain_encoder/encoder"
    save_part(folder, Part.ENCODER, weights(model()), {"stage": "pretrain_encoder", "step": 3})
    return folder


def test_a_part_comes_back_bit_by_bit(encoder: str, tmp_path: Path) -> None:
    target = model()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(9.0)
    load_part(encoder, Part.ENCODER, target)
    expected = weights(model())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in weights(target).items())
    assert all((parameter == 9.0).all() for parameter in weights(target, Part.MAPPER).values())
    assert encoder == f"{tmp_path}/parts/pretrain_encoder/encoder"
    card = read_card(encoder)
    assert (card["part"], card["stage"], card["step"], len(card["sha256"])) == ("encoder", "pretrain_encoder", 3, 64)


def test_a_part_is_loaded_into_lower_precision(encoder: str) -> None:
    target = model().to(torch.bfloat16)
    load_part(encoder, Part.ENCODER, target)
    assert torch.equal(target.encoder.item.weight, model().encoder.item.weight.bfloat16())


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def cut_card(folder: Path) -> None:
    (folder / "part.json").write_text('{"part": "enc')


def lose_card(folder: Path) -> None:
    (folder / "part.json").unlink()


def rename(folder: Path) -> None:
    card = json.loads((folder / "part.json").read_text())
    (folder / "part.json").write_text(json.dumps(card | {"part": "mapper"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "model.safetensors: damaged or cut short"),
        (cut_card, "part.json: damaged or cut short"),
        (lose_card, "no trained part here; run the stage that trains it"),
        (rename, "holds the part 'mapper', not 'encoder'"),
    ],
)
def test_a_part_that_cannot_be_used_is_refused(damage: Any, message: str, encoder: str) -> None:
    damage(Path(encoder))
    refused(encoder, model(), message)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (model(width=32), "has shape (11, 16), this configuration needs (11, 32)"),
        (model(items=12), "item.weight has shape (11, 16), this configuration needs (13, 16)"),
        (model(blocks=2), "tensor 'blocks.1.attention_norm.bias' is only on one side"),
    ],
    ids=["width", "items", "blocks"],
)
def test_a_part_of_another_configuration_is_refused(target: SASRecLLM, message: str, encoder: str) -> None:
    refused(encoder, target, message)


def test_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(f"{tmp_path}/parts/none", model(), "no trained part here")


def refused(folder: str, target: SASRecLLM, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_part(folder, Part.ENCODER, target)
    assert message in str(caught.value) and folder in str(caught.value) and "\n" not in str(caught.value)
