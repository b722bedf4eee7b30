"""What a run is: what of a configuration makes it another one."""

import pytest
from configurations import CONFIGS, configured

import rayrec.config
from rayrec.config import Config, differences, fingerprint, identity
from rayrec.settings import load, validate


@pytest.mark.parametrize(
    "assignments",
    [
        ["name=other"],
        ["storage=/elsewhere"],
        ["cluster.workers=4"],
        ["cluster.max_failures=0", "cluster.cpus_per_worker=2"],
    ],
    ids=str,
)
def test_how_to_run_is_not_what_to_run(assignments: list[str]) -> None:
    assert configured(*assignments) != Config()
    assert fingerprint(identity(configured(*assignments))) == fingerprint(identity(Config()))


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=1",
        "data.threshold=3.5",
        "data.split.valid=0.05",
        "encoder.width=32",
        "encoder.kind=gru",
        "encoder.history=rated",
        "encoder.offset=feature_floor",
        "encoder.members=3",
        "mapper.tokens=2",
        "mapper.offset=feature_floor",
        "mapper.features=feature_floor",
        "backbone.sources=tiny",
        "backbone.score=yes",
        "lora.r=4",
        "engine.precision=fp32",
        "engine.zero_stage=1",
        "stages.tune_lora.lr=1e-4",
        "stages.tune_hybrid.part_lr.encoder=1e-5",
        "evaluation.users=10",
    ],
)
def test_what_to_run_changes_the_fingerprint(assignment: str) -> None:
    changed = identity(configured(assignment))
    assert fingerprint(changed) != fingerprint(identity(Config()))
    (line,) = differences(identity(Config()), changed)
    path, _, values = line.partition(": ")
    assert path == assignment.partition("=")[0] and " -> " in values


@pytest.mark.parametrize(
    ("of", "assignment"),
    [
        ("encoder.kind=bert4rec", "encoder.mask=0.5"),
        ("stages.pretrain_encoder.loss=sampled_softmax", "stages.pretrain_encoder.negatives=8"),
        ("stages.pretrain_encoder.loss=gbce", "stages.pretrain_encoder.negatives=8"),
        ("stages.pretrain_encoder.loss=gbce", "stages.pretrain_encoder.calibration=0.5"),
    ],
)
def test_so_does_what_only_some_read(of: str, assignment: str) -> None:
    path, _, value = assignment.partition("=")
    assert differences(identity(configured(of)), identity(configured(of, assignment))) == [f"{path}: None -> {value}"]


def test_names_that_were_bound_before_a_setting_came_stay_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints from before settings that are younger than runs, whether these are left out or said."""
    monkeypatch.setattr(rayrec.config, "has_bf16", lambda: True)  # for those whose precision is ``auto``
    of_next_items = {
        "beauty": "1430f1bdb4e68b5648ace3cfebbbeaa8ec77d4af3911256f5fba0b8bf131b0e8",
        "smoke_next_item": "c274a5ff1e284d03d8abf8dbef5845b1b52dd8a1e05f93772fb9033da13f0f38",
        "steam": "3d0cc03d8914fe5936f4e25ba3a2fbf45563773d014ae989facfceec9de2233f",
    }
    before = {
        "ml100k_smollm2": "d512d69e0c728db8acfc8fa4d17175d64c84e2f2834a1d68803adf2d38b108eb",
        "smoke": "c26e2be678c886a884d6a41ff2bdad30cd71d1eb19482c773915d82d1a592336",
    }
    said = [
        "encoder.history=liked",
        "encoder.mask=0.2",
        "encoder.offset=null",
        "encoder.centred=false",
        "encoder.members=1",
        "encoder.trust=1.0",
        "mapper.offset=null",
        "mapper.features=null",
    ]
    said += [
        "fast.kept_prefixes_gb=0.25",
        "stages.pretrain_encoder.negatives=256",
        "stages.pretrain_encoder.calibration=0.75",
    ]
    for path in CONFIGS:
        for overrides in ([], said) if path.stem in before else ():
            assert fingerprint(identity(load(path, overrides))) == before[path.stem]
        for overrides in ([], ["ranking.sasrecllm=null"]) if path.stem in of_next_items else ():
            assert fingerprint(identity(load(path, overrides))) == of_next_items[path.stem]


def test_a_fingerprint_is_of_the_content_not_of_its_order() -> None:
    assert fingerprint({"a": 1, "b": [2, "é"]}) == fingerprint({"b": [2, "é"], "a": 1})
    assert len(fingerprint({})) == 64
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


def test_an_identity_says_everything_and_comes_back() -> None:
    there = configured("seed=3", "stages.tune_hybrid.starts_from.lora=/p", "stages.tune_hybrid.trains=[mapper]")
    back = validate(identity(there), "x")
    assert identity(back) == identity(there)
    how, of_next_items = {"name", "storage", "cluster", "trackers"}, {"names", "ranking"}
    assert set(identity(there)) == set(Config.model_fields) - how - of_next_items


def test_differences_name_every_leaf() -> None:
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": {"f": 0}}
    assert differences(old, new) == ["a.c: [1] -> [2]", "d: 2 -> None", "e: None -> {'f': 0}"]
    assert differences(old, old) == []
