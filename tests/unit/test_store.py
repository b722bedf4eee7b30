"""A stage's address in the store: what changes it, and what does not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rayrec import storage, store
from rayrec.errors import InputError
from rayrec.run import Run
from rayrec.settings import validate
from rayrec.stages import Part, StageName
from rayrec.training.job import StageJob

ENCODER, LORA, HYBRID = StageName.PRETRAIN_ENCODER, StageName.TUNE_LORA, StageName.TUNE_HYBRID
MANIFEST = {
    "users": 2,
    "items": 3,
    "mean_liked_per_training_user": 2.4,
    "splits": {split: {"rows": 9, "users": 2} for split in ("train", "valid", "test")},
    "files": {"train.parquet": "a1"},
}


def run(folder: Path, tree: Mapping[str, Any], manifest: Mapping[str, Any] = MANIFEST, prompts: str = "b2") -> Run:
    """A run whose data is said to be prepared."""
    made = Run(validate({"name": "x", "storage": str(folder), **tree}, "test"))
    storage.write_text(made.path("data", "manifest.json"), json.dumps(manifest))
    for name, content in {"prompts": prompts, "rated": "c3", "floor": "d4", "features": "f6"}.items():
        mark = {"files": {"train.parquet": content}}
        storage.write_text(made.path("data", name, f"{name}.json"), json.dumps(mark))
    return made


def marks(of: Run) -> dict[StageName, str]:
    return {stage: job.fingerprint for stage, job in of.stage_jobs().items()}


def changed(folder: Path, tree: Mapping[str, Any], **more: Any) -> set[StageName]:
    """Stages whose address ``tree`` changes."""
    before, after = marks(run(folder / "before", {})), marks(run(folder / "after", tree, **more))
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("tree", "stages"),
    [
        ({}, set()),
        ({"name": "y"}, set()),
        ({"cluster": {"workers": 1}}, set()),
        ({"stages": {"pretrain_encoder": {"checkpoint_every": 3}}}, set()),
        ({"evaluation": {"users": 3}}, set()),
        ({"seed": 1}, {ENCODER, LORA, HYBRID}),
        ({"encoder": {"width": 32}}, {ENCODER, HYBRID}),
        ({"encoder": {"max_len": 2}}, set()),  # what `auto` comes to with this data
        ({"encoder": {"max_len": 3}}, {ENCODER, HYBRID}),
        ({"encoder": {"history": "liked", "offset": None}, "mapper": {"offset": None, "features": None}}, set()),
        ({"encoder": {"history": "rated"}}, {ENCODER, HYBRID}),
        ({"encoder": {"offset": "feature_floor"}}, {ENCODER, HYBRID}),
        ({"mapper": {"offset": "feature_floor"}}, {HYBRID}),
        ({"mapper": {"features": "feature_floor"}}, {HYBRID}),
        ({"stages": {"pretrain_encoder": {"lr": 0.01}}}, {ENCODER, HYBRID}),
        ({"stages": {"tune_lora": {"lr": 0.01}}}, {LORA, HYBRID}),
        ({"lora": {"r": 4}}, {LORA, HYBRID}),
        ({"backbone": {"sources": "tiny"}}, {LORA, HYBRID}),
        ({"engine": {"precision": "fp32"}}, {LORA, HYBRID}),  # the encoder alone trains in fp32 anyway
        ({"mapper": {"tokens": 2}}, {HYBRID}),
        ({"stages": {"tune_hybrid": {"epochs": 3}}}, {HYBRID}),
        ({"stages": {"tune_hybrid": {"starts_from": {"encoder": "fresh"}}}}, {HYBRID}),
        ({"stages": {"tune_hybrid": {"starts_from": {"lora": "none"}}}}, {HYBRID}),
        ({"stages": {"tune_hybrid": {"trains": ["encoder", "mapper", "lora"]}}}, {HYBRID}),
    ],
)
def test_an_address_follows_from_what_determines_the_result(
    tree: dict[str, Any], stages: set[StageName], tmp_path: Path
) -> None:
    assert changed(tmp_path, tree) == stages


FROM_SCRATCH = {"starts_from": {"encoder": "fresh"}}
WITHOUT_LORA = {"starts_from": {"lora": "none"}}
JOINT = {"trains": ["encoder", "mapper", "lora"], "starts_from": {"encoder": "fresh", "lora": "fresh"}}


@pytest.mark.parametrize(
    ("variant", "tree", "moves"),
    [
        (FROM_SCRATCH, {"stages": {"pretrain_encoder": {"lr": 0.01}}}, False),
        (FROM_SCRATCH, {"stages": {"tune_lora": {"lr": 0.01}}}, True),
        (FROM_SCRATCH, {"encoder": {"width": 32}}, True),
        (WITHOUT_LORA, {"stages": {"tune_lora": {"lr": 0.01}}}, False),
        (WITHOUT_LORA, {"lora": {"r": 4}}, False),
        (WITHOUT_LORA, {"stages": {"pretrain_encoder": {"lr": 0.01}}}, True),
        (JOINT, {"stages": {"pretrain_encoder": {"lr": 0.01}, "tune_lora": {"lr": 0.01}}}, False),
        (JOINT, {"lora": {"r": 4}}, True),
        (JOINT, {"seed": 1}, True),
    ],
)
def test_a_variants_address_follows_from_what_it_starts_from(
    variant: dict[str, Any], tree: dict[str, Any], moves: bool, tmp_path: Path
) -> None:
    before = marks(run(tmp_path / "before", {"stages": {"tune_hybrid": variant}}))
    stages = {"tune_hybrid": variant} | tree.get("stages", {})
    after = marks(run(tmp_path / "after", tree | {"stages": stages}))
    assert (before[HYBRID] != after[HYBRID]) is moves


def test_variants_have_addresses_of_their_own(tmp_path: Path) -> None:
    every = {"trains": ["encoder", "mapper", "lora"]}
    variants = [{}, {"trains": ["mapper"]}, FROM_SCRATCH, WITHOUT_LORA, JOINT, every, every | FROM_SCRATCH]
    found = {marks(run(tmp_path / str(i), {"stages": {"tune_hybrid": one}}))[HYBRID] for i, one in enumerate(variants)}
    assert len(found) == len(variants)


def test_it_follows_from_the_data(tmp_path: Path) -> None:
    other = {**MANIFEST, "files": {"train.parquet": "a2"}}
    assert changed(tmp_path / "rows", {}, manifest=other) == {ENCODER, LORA, HYBRID}
    assert changed(tmp_path / "prompts", {}, prompts="b3") == {LORA, HYBRID}


def test_it_follows_from_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = marks(run(tmp_path, {}))
    monkeypatch.setattr(store, "code_version", lambda: "another")
    after = marks(run(tmp_path, {}))
    assert all(before[stage] != after[stage] for stage in before)


def test_the_code_is_read_without_its_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "stages.py"
    monkeypatch.setattr(store, "__file__", str(tmp_path / "store.py"))
    monkeypatch.setattr(store, "_CODE", ("stages.py",))
    seen = []
    for text in ("x = 1\n", "x = 1  # one\n\n", "x = 2\n"):
        code.write_text(text)
        seen.append(store.code_version.__wrapped__())
    assert seen[0] == seen[1] != seen[2]


def origin(of: Run, stage: StageName = HYBRID, part: Part = Part.ENCODER) -> StageJob:
    return of.stage_jobs()[stage]


def test_a_part_of_the_run_itself_goes_before_the_store(tmp_path: Path) -> None:
    """One that this very stage trained keeps the address; another one, put there by hand, changes it."""
    of = run(tmp_path, {})
    first = origin(of)
    encoder = of.stage_jobs()[ENCODER]
    assert first.origins[Part.ENCODER] == encoder.part_folder(Part.ENCODER)
    own = of.part_folder(ENCODER, Part.ENCODER)
    storage.write_text(f"{own}/part.json", json.dumps({"sha256": "c3", "fingerprint": encoder.fingerprint}))
    assert origin(of).origins[Part.ENCODER] == own and origin(of).fingerprint == first.fingerprint
    storage.write_text(f"{own}/part.json", json.dumps({"sha256": "c3", "fingerprint": "of another stage"}))
    assert origin(of).origins[Part.ENCODER] == own and origin(of).fingerprint != first.fingerprint


def test_a_named_part_counts_by_its_content(tmp_path: Path) -> None:
    named = {"stages": {"tune_hybrid": {"starts_from": {"encoder": str(tmp_path / "there")}}}}
    of = run(tmp_path, named)
    with pytest.raises(InputError, match="no trained part here"):
        of.stage_jobs()
    seen = []
    for content in ("d4", "d5"):
        storage.write_text(f"{tmp_path}/there/part.json", json.dumps({"sha256": content}))
        seen.append(origin(of).fingerprint)
    assert seen[0] != seen[1]


def test_a_named_checkpoint_counts_by_its_content(tmp_path: Path) -> None:
    """What went on from another engine's state is not what one engine trained."""
    pure = origin(run(tmp_path, {})).fingerprint
    of = run(tmp_path, {"stages": {"tune_hybrid": {"resume_from": str(tmp_path / "there")}}})
    with pytest.raises(InputError, match="no checkpoint here"):
        of.stage_jobs()
    seen = []
    for content in ("d4", "d5"):
        storage.write_text(f"{tmp_path}/there/progress.json", json.dumps({"sha256": content}))
        seen.append(origin(of).fingerprint)
    assert len({pure, *seen}) == 3
    storage.write_text(f"{tmp_path}/there/progress.json", "{")
    with pytest.raises(InputError, match="damaged or cut short; name another checkpoint"):
        of.stage_jobs()


@pytest.mark.parametrize(
    ("tree", "beside", "stages"),
    [
        ({"encoder": {"history": "rated"}}, "rated", {ENCODER, HYBRID}),
        ({"encoder": {"offset": "feature_floor"}}, "floor", {ENCODER, HYBRID}),
        ({"mapper": {"offset": "feature_floor"}}, "floor", {HYBRID}),
        ({"mapper": {"features": "feature_floor"}}, "features", {HYBRID}),
        ({}, "rated", set()),
        ({}, "floor", set()),
    ],
)
def test_what_lies_beside_the_rows_counts_where_it_is_read(
    tree: dict[str, Any], beside: str, stages: set[StageName], tmp_path: Path
) -> None:
    of = run(tmp_path, tree)
    before = marks(of)
    storage.write_text(of.path("data", beside, f"{beside}.json"), json.dumps({"files": {"train.parquet": "e5"}}))
    after = marks(of)
    assert {stage for stage in before if before[stage] != after[stage]} == stages
    storage.delete(of.path("data", beside))
    assert set(marks(of)) == {ENCODER, LORA, HYBRID} - stages  # a stage without its parent cannot be told either


def test_how_long_a_history_of_rated_items_is(tmp_path: Path) -> None:
    tree = {"encoder": {"history": "rated"}}
    assert run(tmp_path / "auto", tree).facts.max_len == 4  # 9 rows of 2 users, and half to even
    assert run(tmp_path / "said", {"encoder": {"history": "rated", "max_len": 7}}).facts.max_len == 7
    assert run(tmp_path / "liked", {}).facts.max_len == 2


def test_without_prompts_there_is_the_encoder(tmp_path: Path) -> None:
    of = run(tmp_path, {})
    storage.delete(of.path("data", "prompts"))
    assert list(of.stage_jobs()) == [ENCODER]


def test_the_store_has_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'store' is the folder of stage results"):
        validate({"name": "store"}, "test")
