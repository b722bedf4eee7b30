"""An experiment before and after its pairs run: what its file may say, and what is made of their predictions."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pretend
import pytest
import yaml
from pages import EXPERIMENT_FIGURES
from sklearn import metrics as reference

from rayrec import storage
from rayrec.binding import EXPERIMENT, bind, is_bound
from rayrec.data.beside import Beside
from rayrec.data.columns import PREDICTIONS_SCHEMA
from rayrec.errors import DivergedError, InputError
from rayrec.experiment import study
from rayrec.experiment.pairs import Pair, all_pairs, variants
from rayrec.experiment.results import COMPARED, Told, summarise
from rayrec.experiment.settings import Experiment, load_experiment
from rayrec.experiment.study import is_prepared
from rayrec.report import ExperimentReportData, write_experiment_report
from rayrec.run import Run
from rayrec.stages import Part, StageName
from rayrec.training.launch import StageError

ROOT = Path(__file__).resolve().parents[2]
PLAIN: dict[str, Any] = {
    "name": "e",
    "base": str(ROOT / "configs" / "smoke.yaml"),
    "seeds": [0, 1],
    "reference": "SASRec",
    "systems": {
        "Floor": {"system": "bias_floor"},
        "SASRec": {"system": "sasrec"},
        "MF": {"system": "sasrec", "set": {"encoder.kind": "mf"}},
        "Mapper only": {"system": "sasrecllm", "set": {"stages.tune_hybrid.trains": ["mapper"]}},
    },
}


def experiment(folder: Path, changes: Mapping[str, Any] = {}) -> Experiment:
    path = folder / "e.yaml"
    tree = PLAIN | {"set": {"storage": str(folder / "runs")}} | dict(changes)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_experiment(path)


def with_system(title: str, entry: Any) -> dict[str, Any]:
    return {"systems": PLAIN["systems"] | {title: entry}}


# ------------------------------------------------------------------------------------------------------------ its file


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_experiment_loads(path: Path) -> None:
    found = load_experiment(path)
    assert len(found.config.systems) >= 4 and found.config.name.startswith("experiment-")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"sytems": {}}, r"e\.yaml: unknown key 'sytems'; did you mean 'systems'\?"),
    "unknown key of a system": (
        with_system("MF [64].", {"system": "sasrec", "sets": {}}),
        r"e\.yaml: systems\.MF \[64\]\.: unknown key 'sets'; did you mean 'set'\?",
    ),
    "no such system": (with_system("X", {"system": "sasrek"}), r"systems\.X: system: .*'sasrec'.*got 'sasrek'"),
    "no system": (with_system("X", {"set": {}}), r"systems\.X: system: missing"),
    "none at all": ({"systems": {}}, r"systems: .*at least 1 item"),
    "no seed": ({"seeds": []}, r"seeds: .*at least 1 item"),
    "a seed below zero": ({"seeds": [-1]}, r"seeds\.0: .*greater than or equal to 0"),
    "a seed twice": ({"seeds": [1, 1]}, r"seeds: \[1, 1\] names a seed twice"),
    "reference misspelt": ({"reference": "SASrec"}, r"no system has the title 'SASrec'; did you mean 'SASRec'\?"),
    "reference missing": ({"reference": "?"}, r"reference: no system has the title '\?'; titles: Floor, SASRec, MF"),
    "the store's name": ({"name": "store"}, r"name: 'store' is the folder of stage results"),
    "unknown path of all": ({"set": {"encoder.widht": 8}}, r"e\.yaml: set: unknown key 'encoder\.widht'"),
    "unknown path of one": (
        with_system("X", {"system": "sasrec", "set": {"encoder.widht": 8}}),
        r"e\.yaml: systems\.X\.set: unknown key 'encoder\.widht'; did you mean 'width'\?",
    ),
    "refused together": (
        with_system("X", {"system": "sasrec", "set": {"encoder.heads": 5}}),
        r"systems\.X\.set: encoder: width 32 is not divisible by heads 5",
    ),
    "a seed of its own": (
        with_system("X", {"system": "sasrec", "set": {"seed": 3}}),
        r"systems\.X\.set\.seed: all systems share seed; set it for the whole experiment",
    ),
    "other test rows": (
        with_system("X", {"system": "icl", "set": {"evaluation": {"users": 3}}}),
        r"systems\.X\.set\.evaluation: all systems share evaluation\.users",
    ),
    "the same twice": (
        with_system("X", {"system": "sasrec", "set": {"stages.tune_lora.lr": 0.5}}),
        r"systems\.X: comes to the same sasrec as 'SASRec'; leave one of them out",
    ),
    "a blank title": (with_system(" ", {"system": "icl"}), r"systems: ' ' is no title"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(case: str, tmp_path: Path) -> None:
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        experiment(tmp_path, changes)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


def test_overrides(tmp_path: Path) -> None:
    experiment(tmp_path)
    found = load_experiment(tmp_path / "e.yaml", ["seeds=[3]", "set.encoder.width=16"])
    assert found.config.seeds == (3,) and found.configuration("MF", 3).encoder.width == 16
    with pytest.raises(InputError, match=r"--set systems\.MF\.set\.seed=1: titles may hold dots"):
        load_experiment(tmp_path / "e.yaml", ["systems.MF.set.seed=1"])


def test_every_pair_has_its_configuration(tmp_path: Path) -> None:
    found = experiment(tmp_path)
    assert [found.seeds(title) for title in found.config.systems] == [(0,), (0, 1), (0, 1), (0, 1)]
    assert found.configuration("MF", 1).seed == 1 and found.configuration("MF", 1).encoder.kind == "mf"
    assert found.configuration("SASRec", 1).encoder.kind == "sasrec"
    assert found.configuration("Mapper only", 0).stages.tune_hybrid.trains == ("mapper",)


def test_titles_have_folders_of_their_own(tmp_path: Path) -> None:
    titles = ["SASRec", "A/b", "a b", "☃", "✓", "../x", "store", "Mapper only"]
    entries = {
        title: {"system": "sasrec", "set": {"stages.pretrain_encoder.lr": 1e-3 * (1 + i)}}
        for i, title in enumerate(titles)
    }
    slugs = experiment(tmp_path, {"systems": entries}).slugs
    assert len({slug.lower() for slug in slugs.values()}) == len(titles)
    assert all(Path(slug).name == slug and slug.strip(".") for slug in slugs.values())
    assert slugs["Mapper only"] == "mapper-only" and slugs["SASRec"] == "sasrec" and slugs["../x"] == "x"


def test_a_name_stands_for_one_base_and_any_systems(tmp_path: Path) -> None:
    folder = str(tmp_path / "runs" / "e")
    bind(folder, EXPERIMENT, experiment(tmp_path).identity, {})
    assert is_bound(
        folder, EXPERIMENT, experiment(tmp_path, {"seeds": [4], **with_system("I", {"system": "icl"})}).identity
    )
    with pytest.raises(
        InputError, match=r"the name 'e' already holds another configuration \(base\.encoder\.width: 32"
    ):
        is_bound(folder, EXPERIMENT, experiment(tmp_path, {"set": {"encoder.width": 16}}).identity)


# ----------------------------------------------------------------------------------------------------------- its pairs


def prepared(of: Experiment) -> None:
    """As if its data were prepared."""
    manifest = {"users": 2, "items": 3, "mean_liked_per_training_user": 2.4, "files": {"train.parquet": "a1"}}
    manifest["splits"] = {split: {"rows": 9, "users": 2} for split in ("train", "valid", "test")}
    for variant in variants(of):
        storage.write_text(f"{variant.data.folder}/manifest.json", json.dumps(manifest))
        for name in ("prompts", "rated", "floor"):
            storage.write_text(f"{variant.data.folder}/{name}/{name}.json", json.dumps({"files": {"train": "b2"}}))


def addressed(of: Experiment) -> dict[tuple[str, int], Pair]:
    prepared(of)
    return {(pair.title, pair.seed): pair for pair in all_pairs(of)}


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


def test_an_ensemble_runs_what_its_members_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {title: VARIANTS[title] for title in ("Ensemble", "TALLRec", "SASRec")}
    pairs = [pair for pair in addressed(experiment(tmp_path, {"systems": entries})).values() if pair.seed == 0]
    done: list[str] = []
    asked: list[list[StageName]] = []

    def score(run: Run, systems: list[Any]) -> None:
        done.append(systems[0].value)
        storage.write_text(run.path("predictions", f"{systems[0]}.parquet"), "")

    def fail(run: Run, stages: list[StageName]) -> None:
        """The first stage reaches its end, the second does not."""
        asked.append(stages)
        first = pairs[0].jobs[StageName.PRETRAIN_ENCODER]
        storage.write_text(f"{first.part_folder(Part.ENCODER)}/part.json", "{}")
        if StageName.TUNE_LORA in stages:
            raise StageError("out of memory")

    def combine(run: Run, system: Any, members: Mapping[Any, Run]) -> None:
        assert {name: member.folder for name, member in members.items()} == {
            member.system: member.run.folder for member in pairs[0].members
        }
        score(run, [system])

    monkeypatch.setattr(study, "score_systems", score)
    monkeypatch.setattr(study, "score_ensemble", combine)
    monkeypatch.setattr(study, "train_run", fail)
    failures = study._Failures()
    study._run_pairs(pairs, failures)
    assert asked == [list(StageName), [StageName.PRETRAIN_ENCODER]] and done == ["sasrec"]  # a stage fails once for all
    assert failures.pairs == {pair.fingerprint: "out of memory" for pair in pairs[:2]}
    monkeypatch.setattr(study, "train_run", lambda run, stages: None)
    study._run_pairs(pairs, study._Failures())
    assert done == ["sasrec", "sasrecllm", "tallrec", "ensemble"] and all(pair.is_finished for pair in pairs)


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


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (InputError("stages.tune_hybrid.batch: too many rows"), 6),
        (DivergedError("the loss is nan"), 4),
        (StageError("out of memory"), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_stage_that_failed_is_not_tried_by_the_next_pair(
    error: Exception, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MF and SASRec have encoders of their own, the mapper has SASRec's. What settings alone refuse has not failed."""
    pairs = [pair for pair in addressed(experiment(tmp_path)).values() if pair.jobs]
    asked: list[str] = []

    def fail(run: Run, stages: list[StageName]) -> None:
        asked.append(run.folder)
        raise error

    monkeypatch.setattr(study, "train_run", fail)
    failures = study._Failures()
    study._run_pairs(pairs, failures)
    assert len(pairs) == 6 and len(asked) == tries
    assert failures.pairs == {pair.fingerprint: str(error) for pair in pairs}


# --------------------------------------------------------------------------------------------------------- its numbers


def invented(of: Experiment, strength: Mapping[str, float]) -> dict[str, dict[int, pd.DataFrame]]:
    """Predictions of the same rows; the stronger a title, the better."""
    generator = np.random.default_rng(3)
    user = np.sort(generator.integers(0, 60, 900))
    taste = generator.normal(0, 1, 900)
    columns = {"user_id": user, "item_id": generator.integers(1, 90, 900), "label": (taste > 0).astype(np.int8)}
    warm = generator.random(900) < 0.7
    slices = {"is_warm": warm, "is_strict_cold": ~warm & (generator.random(900) < 0.3)}
    return {
        title: {
            seed: pd.DataFrame(
                columns | {"score": 1 / (1 + np.exp(-strength[title] * taste - generator.normal(0, 1, 900)))} | slices
            )[PREDICTIONS_SCHEMA.names]
            for seed in of.seeds(title)
        }
        for title in of.config.systems
    }


STRENGTH = {"Floor": 0.1, "SASRec": 0.5, "MF": 0.52, "Mapper only": 1.5}


def all_told(predictions: Mapping[str, Mapping[int, pd.DataFrame]]) -> dict[str, Told]:
    return {title: Told(predictions=frames, failures={}) for title, frames in predictions.items()}


def test_the_numbers_follow_from_the_predictions(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    predictions = invented(of, STRENGTH)
    results = summarise(of, all_told(predictions), "all of them")

    def recomputed(frame: pd.DataFrame) -> dict[str, float]:
        label, score = frame["label"], frame["score"]
        users = [rows for _, rows in frame.groupby("user_id") if rows["label"].nunique() == 2]
        return {
            "auc": reference.roc_auc_score(label, score),
            "uauc": np.mean([reference.roc_auc_score(rows["label"], rows["score"]) for rows in users]),
            "log_loss": reference.log_loss(label, score),
            "accuracy": reference.accuracy_score(label, score >= 0.5),
            "f1": reference.f1_score(label, score >= 0.5),
        }

    sums = {}
    for title, frames in predictions.items():
        shown = results["systems"][title]
        for part, chosen in (("all", lambda f: f), ("cold", lambda f: f[~f.is_warm])):
            each = pd.DataFrame([recomputed(chosen(frame)) for frame in frames.values()])
            for name in COMPARED:
                found = shown["slices"][part]["metrics"][name]
                assert found["mean"] == pytest.approx(each[name].mean(), abs=1e-12)
                assert list(found["seeds"].values()) == pytest.approx(each[name].tolist(), abs=1e-12)
                assert (found["sd"] is None) == (title == "Floor")
                if len(each) > 1:
                    assert found["sd"] == pytest.approx(each[name].std(), abs=1e-12)  # pandas divides by n - 1
            sums[title, part] = each["auc"].mean() + each["uauc"].mean()
    for title in predictions:
        gain = sums[title, "all"] / sums["SASRec", "all"] - 1
        assert results["systems"][title]["relative_improvement"] == pytest.approx(gain, abs=1e-12)
    assert results["systems"]["SASRec"]["slices"]["all"]["minus_reference"] == {}
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_only_a_clear_lead_is_the_best(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    clear = summarise(of, all_told(invented(of, STRENGTH)), "")["best"]["all"]
    assert {name: found["title"] for name, found in clear.items()} == dict.fromkeys(COMPARED, "Mapper only")
    assert clear["auc"]["is_significant"] and clear["auc"]["difference"]["low"] > 0
    assert clear["log_loss"]["is_significant"] and clear["log_loss"]["difference"]["high"] < 0
    close = summarise(of, all_told(invented(of, STRENGTH | {"Mapper only": 0.5})), "")["best"]["all"]
    assert not close["auc"]["is_significant"] and close["auc"]["difference"]["p"] >= 0.05


def report(of: Experiment, results: Mapping[str, Any]) -> ExperimentReportData:
    shown: dict[str, Any] = {"config_yaml": "", "versions": {"rayrec": "1"}, "notes": ["One."]}
    return ExperimentReportData(title="e", results=results, evidence=pretend.NO_EVIDENCE, **shown)


def test_bold_is_for_the_clear_lead(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    for strength, bold in ((STRENGTH, True), (STRENGTH | {"Mapper only": 0.5}, False)):
        results = summarise(of, all_told(invented(of, strength)), "")
        write_experiment_report(report(of, results), tmp_path / str(bold))
        text = (tmp_path / str(bold) / "tables" / "results.md").read_text()
        auc = f"{results['systems']['Mapper only']['slices']['all']['metrics']['auc']['mean']:.4f}"
        assert (f"| Mapper only | **{auc} ±" in text) is bold and (f"| Mapper only | {auc} ±" in text) is not bold


def test_what_failed_is_told_and_the_rest_counts(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    predictions = invented(of, STRENGTH)
    told = all_told(predictions) | {
        "MF": Told(predictions={1: predictions["MF"][1]}, failures={0: "the loss diverged"}),
        "SASRec": Told(predictions={}, failures={0: "gone", 1: "gone"}),
    }
    results = summarise(of, told, "")
    assert results["systems"]["MF"]["failures"] == {"0": "the loss diverged"}
    mf = results["systems"]["MF"]["slices"]["all"]["metrics"]["auc"]
    assert mf["sd"] is None and mf["mean"] == pytest.approx(
        reference.roc_auc_score(predictions["MF"][1]["label"], predictions["MF"][1]["score"]), abs=1e-12
    )
    assert all(row["relative_improvement"] is None for row in results["systems"].values())  # the reference is gone
    page = write_experiment_report(report(of, results), tmp_path / "report").read_text()
    assert "the loss diverged" in page and ">1 of 2" in page and ">0 of 2" in page and "nan<" not in page


def test_an_ensembles_weights_are_told(tmp_path: Path) -> None:
    of = experiment(tmp_path, with_system("Pool", {"system": "ensemble"}))
    predictions = invented(of, STRENGTH | {"Pool": 1.0})
    weights = {seed: {"sasrec": 0.25, "tallrec": 0.0, "sasrecllm": 0.75} for seed in (0, 1)}
    told = all_told(predictions) | {"Pool": Told(predictions=predictions["Pool"], failures={}, weights=weights)}
    results = summarise(of, told, "")
    assert results["systems"]["Pool"]["weights"] == {"0": weights[0], "1": weights[1]}
    assert results["systems"]["Pool"]["is_trained"] and "weights" not in results["systems"]["SASRec"]
    page = write_experiment_report(report(of, results), tmp_path / "report").read_text()
    assert "seed 1: 0.25 sasrec + 0.00 tallrec + 0.75 sasrecllm" in page
    assert any("weights were chosen on the validation rows" in note for note in study._notes(of))


def test_the_same_pairs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what belongs to a title that is no more goes."""
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    values = {"storage": str(tmp_path / "runs"), "evaluation.users": None}
    of = experiment(tmp_path, {"set": values, **with_system("Pool", {"system": "ensemble"})})
    pairs = list(addressed(of).values())
    predictions = invented(of, STRENGTH | {"Pool": 1.0})
    rows = predictions["Floor"][0].drop(columns="score").assign(seen=np.arange(900) % 7)
    for variant in variants(of):
        pretend.write_rows(variant.data.folder, rows, [1, 1, 2, 5])
    for pair in pairs:
        pretend.finish(pair, predictions[pair.title][pair.seed])
    folder = tmp_path / "runs" / "e"

    def written() -> dict[str, bytes]:
        study._write(of, pairs, study._Failures(), str(folder))
        files = {path for path in folder.rglob("*") if path.is_file() and "pairs" not in path.parts}
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    first = written()
    wanted = {
        f"report/tables/{name}.{kind}" for name in ("results", "differences", "slices") for kind in ("csv", "md", "tex")
    }
    wanted |= {f"report/figures/{name}.svg" for name in EXPERIMENT_FIGURES}
    wanted |= {f"report/tables/{name}.csv" for name in EXPERIMENT_FIGURES - {"cold_warm"}}
    wanted |= {"predictions/floor/0.parquet", "predictions/mapper-only/1.parquet", "results.json", "report/index.html"}
    wanted |= {f"predictions/pool/{seed}.{kind}" for seed in (0, 1) for kind in ("parquet", "json")}
    assert wanted <= set(first)
    assert not any(b"<dc:date>" in content for content in first.values())
    assert json.loads(first["predictions/pool/1.json"]) == {"sasrec": 0.5, "sasrecllm": 0.5}
    systems = json.loads(first["results.json"])["systems"]
    assert systems["Pool"]["weights"]["0"] == {"sasrec": 0.0, "sasrecllm": 1.0}
    one = pretend.STEPS * pretend.SECONDS
    assert systems["Floor"]["cost"] == {"parameters": 0, "seconds": {"0": {}}}
    assert systems["MF"]["cost"]["seconds"] == {"0": {"pretrain_encoder": one}, "1": {"pretrain_encoder": one}}
    for title in ("Mapper only", "Pool"):  # an ensemble's members are trained once each
        stages = ["pretrain_encoder", "tune_lora", "tune_hybrid"]
        assert systems[title]["cost"]["seconds"]["1"] == dict.fromkeys(stages, one)
        assert systems[title]["cost"]["parameters"] == 3 * pretend.PARAMETERS  # encoder, LoRA, mapper
    by_popularity = pd.read_csv(io.BytesIO(first["report/tables/auc_by_popularity.csv"]))
    assert by_popularity["low"].min() == 0 and by_popularity["high"].max() == 2  # item 1 has two training rows

    storage.write_text(f"{folder}/predictions/old-title/0.parquet", "")
    storage.write_text(f"{folder}/predictions/mf/9.parquet", "")
    assert written() == first
