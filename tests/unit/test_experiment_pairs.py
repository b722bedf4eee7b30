"""The pairs of an experiment: what they share, what addresses them, what runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from experiments import addressed, experiment, with_system

from rayrec import storage
from rayrec.data.beside import Beside
from rayrec.experiment.pairs import variants
from rayrec.experiment.study import is_prepared
from rayrec.stages import StageName


def test_pairs_share_the_stages_and_the_data_that_they_have_in_common(tmp_path: Path) -> None:
    of = experiment(tmp_path, with_system("Long", {"system": "icl", "set": {"data.history": 7}}))
    assert [variant.titles for variant in variants(of)] == [["Floor", "SASRec", "MF", "Mapper only"], ["Long"]]
    pairs = addressed(of)
    assert len(pairs) == 1 + 2 + 2 + 2 + 1 and len({pair.run.folder for pair in pairs.values()}) == len(pairs)
    names = {key: [stage.value for stage in pair.jobs] for key, pair in pairs.items()}
    assert names["Floor", 0] == [] and names["MF", 0] == ["pretrain_encoder"]
    assert names["Mapper only", 1] == ["pretrain_encoder", "tune_lora", "tune_hybrid"]
    folders = {key: [job.folder for job in pair.jobs.values()] for key, pair in pairs.items()}
    assert folders["Mapper only", 0][0] == folders["SASRec", 0][0] != folders["SASRec", 1][0]
    assert folders["MF", 0][0] != folders["SASRec", 0][0]


VARIANTS: dict[str, Any] = {
    "SASRec": {"system": "sasrec"},
    "TALLRec": {"system": "tallrec"},
    "SASRecLLM": {"system": "sasrecllm"},
    "Without LoRA": {"system": "sasrecllm", "set": {"stages.tune_hybrid.starts_from": {"lora": "none"}}},
    "From scratch": {"system": "sasrecllm", "set": {"stages.tune_hybrid.starts_from.encoder": "fresh"}},
    "Joint": {
        "system": "sasrecllm",
        "set": {
            "stages.tune_hybrid.trains": ["encoder", "mapper", "lora"],
            "stages.tune_hybrid.starts_from": {"encoder": "fresh", "lora": "fresh"},
        },
    },
    "Ensemble": {"system": "ensemble"},
    "Joint ensemble": {"system": "ensemble", "set": {"stages.tune_hybrid.trains": ["encoder", "mapper", "lora"]}},
}


def test_a_variant_trains_what_it_needs(tmp_path: Path) -> None:
    of = experiment(tmp_path, {"systems": VARIANTS})
    pairs = addressed(of)
    needed = {title: [stage.value for stage in pairs[title, 1].jobs] for title in VARIANTS}
    assert needed["Without LoRA"] == ["pretrain_encoder", "tune_hybrid"]
    assert needed["From scratch"] == ["tune_lora", "tune_hybrid"]
    assert needed["Joint"] == ["tune_hybrid"]
    assert needed["Ensemble"] == needed["SASRecLLM"] == ["pretrain_encoder", "tune_lora", "tune_hybrid"]
    assert all(list(of.stages(title)) == needed[title] for title in VARIANTS)
    hybrids = {
        pairs[title, 0].jobs[StageName.TUNE_HYBRID].fingerprint for title in VARIANTS if "tune_hybrid" in needed[title]
    }
    assert len(hybrids) == 5  # the ensemble's is SASRecLLM's, and the other's is one of its own


def test_an_ensembles_members_are_the_rows_of_their_systems(tmp_path: Path) -> None:
    """Whatever is trained and scored for the one is there for the other."""
    pairs = addressed(experiment(tmp_path, {"systems": VARIANTS}))
    for seed in (0, 1):
        members = pairs["Ensemble", seed].members
        assert [m.fingerprint for m in members] == [
            pairs[t, seed].fingerprint for t in ("SASRec", "TALLRec", "SASRecLLM")
        ]
        assert [m.run.folder for m in members][2] == pairs["SASRecLLM", seed].run.folder
        other = pairs["Joint ensemble", seed].members
        assert [m.fingerprint for m in other][:2] == [m.fingerprint for m in members][:2]
        assert other[2].fingerprint not in {pair.fingerprint for pair in pairs.values()}
    assert len({pair.fingerprint for pair in pairs.values()}) == len(pairs) == 2 * len(VARIANTS)


def test_an_ensemble_moves_with_its_members(tmp_path: Path) -> None:
    def marks(values: Mapping[str, Any]) -> str:
        common = {"storage": str(tmp_path / "runs"), **values}
        return addressed(experiment(tmp_path, {"systems": VARIANTS, "set": common}))["Ensemble", 0].fingerprint

    plain = marks({})
    assert marks({"evaluation.bootstrap": 7}) == plain
    for key in ("pretrain_encoder.lr", "tune_lora.lr", "tune_hybrid.lr", "tune_hybrid.valid_users"):
        assert marks({f"stages.{key}": 5}) != plain


def test_what_lies_beside_the_data_is_what_its_readers_ask_for(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    assert [variant.beside for variant in variants(of)] == [{Beside.PROMPTS}]
    rated = {"system": "sasrec", "set": {"encoder.history": "rated"}}
    tree = {"systems": {"Rated": rated, "Floor": {"system": "bias_floor"}}, "reference": "Floor"}
    assert [variant.beside for variant in variants(experiment(tmp_path, tree))] == [{Beside.RATED}]
    of = experiment(tmp_path, with_system("Offset", {"system": "sasrecllm", "set": {"mapper.offset": "feature_floor"}}))
    assert [variant.beside for variant in variants(of)] == [{Beside.PROMPTS, Beside.FLOOR}]
    assert not is_prepared(of)
    pairs = addressed(of)
    assert is_prepared(of)
    jobs = {title: pairs[title, 0].jobs for title in ("Offset", "SASRec")}
    assert jobs["Offset"][StageName.PRETRAIN_ENCODER].folder == jobs["SASRec"][StageName.PRETRAIN_ENCODER].folder
    storage.delete(f"{variants(of)[0].data.folder}/floor")
    assert not is_prepared(of)


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({}, set()),
        ({"seeds": [1, 0], "reference": "MF", "name": "e2"}, set()),
        ({"set": {"evaluation.bootstrap": 7, "evaluation.cutoff": 0.4, "cluster.workers": 1}}, set()),
        ({"set": {"stages.tune_lora.lr": 0.5}}, {"Mapper only"}),
        ({"set": {"stages.pretrain_encoder.lr": 0.5}}, {"SASRec", "MF", "Mapper only"}),
        ({"set": {"evaluation.users": 7}}, {"Floor", "SASRec", "MF", "Mapper only"}),
    ],
    ids=["nothing", "how it is told", "how it is judged", "a later stage", "the first stage", "the rows"],
)
def test_a_pair_is_addressed_by_what_determines_it(changes: dict[str, Any], moved: set[str], tmp_path: Path) -> None:
    before = addressed(experiment(tmp_path))
    values = {"storage": str(tmp_path / "runs"), **changes.get("set", {})}
    after = addressed(experiment(tmp_path, changes | {"set": values}))
    common = before.keys() & after.keys()
    assert {title for title, _ in common} >= {"SASRec", "MF", "Mapper only"}
    found = {key[0] for key in common if before[key].fingerprint != after[key].fingerprint}
    assert found == moved - ({"Floor"} if ("Floor", 0) not in common else set())
