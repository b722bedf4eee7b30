"""The figures of an experiment, of invented systems: complete, patient with what is missing, the same each time."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from pages import EXPERIMENT_FIGURES, assert_ids_are_unique, assert_needs_no_network
from sklearn import metrics as reference

from rayrec.data.columns import PREDICTIONS_SCHEMA
from rayrec.experiment.evidence import POPULARITY, gather
from rayrec.experiment.folds import summarise_folds
from rayrec.experiment.results import Told, summarise
from rayrec.experiment.settings import Experiment, load_experiment
from rayrec.metrics import evaluate_slices
from rayrec.report import Evidence, ExperimentReportData, write_experiment_report

ROOT = Path(__file__).resolve().parents[2]
MAPPER_ONLY = {"stages.tune_hybrid.trains": ["mapper"]}
SYSTEMS: dict[str, dict[str, Any]] = {
    "Bias floor": {"system": "bias_floor"},
    "Feature floor": {"system": "feature_floor"},
    "MC": {"system": "markov"},
    "MF": {"system": "sasrec", "set": {"encoder.kind": "mf"}},
    "NeuMF": {"system": "sasrec", "set": {"encoder.kind": "neumf"}},
    "GRU": {"system": "sasrec", "set": {"encoder.kind": "gru"}},
    "SASRec": {"system": "sasrec"},
    "ICL": {"system": "icl"},
    "TALLRec": {"system": "tallrec"},
    "SASRecLLM": {"system": "sasrecllm"},
    "SASRecLLM, mapper only": {"system": "sasrecllm", "set": MAPPER_ONLY},
    "SASRecLLM over MF, mapper only, at a lower rate": {
        "system": "sasrecllm",
        "set": MAPPER_ONLY | {"encoder.kind": "mf", "stages.tune_hybrid.lr": 1e-4},
    },
}
STAGES = {  # that a system needs
    "sasrec": ("pretrain_encoder",),
    "tallrec": ("tune_lora",),
    "sasrecllm": ("pretrain_encoder", "tune_lora", "tune_hybrid"),
}
ROWS = 1500


def experiment(folder: Path, systems: Mapping[str, Any] = SYSTEMS, *options: str) -> Experiment:
    path = folder / "e.yaml"
    tree = {"name": "e", "base": str(ROOT / "configs" / "smoke.yaml"), "seeds": [0, 1], "reference": "SASRec"}
    path.write_text(yaml.safe_dump(tree | {"systems": dict(systems)}, sort_keys=False))
    return load_experiment(path, options)


def invented(of: Experiment, rows: int = ROWS, draw: int = 5) -> tuple[dict[str, Told], pd.DataFrame]:
    """What became of every title, the later the better; and the counts of the rows."""
    generator = np.random.default_rng(draw)
    user = np.sort(generator.integers(0, 90, rows))
    taste = generator.normal(0, 1, rows)
    columns = {"user_id": user, "item_id": generator.integers(1, 300, rows), "label": (taste > 0).astype(np.int8)}
    seen = generator.geometric(0.02, rows) - 1
    popularity = (generator.pareto(1.2, rows) * 20).astype(np.int64)
    warm = (seen > 3) & (popularity > 3)
    columns |= {"is_warm": warm, "is_strict_cold": ~warm & (seen < 20)}
    told = {}
    for index, (title, entry) in enumerate(of.config.systems.items()):
        logits = {s: (0.1 + 0.08 * index) * taste + generator.normal(0, 1, rows) for s in of.seeds(title)}
        frames = {s: pd.DataFrame(columns | {"score": 1 / (1 + np.exp(-x))}) for s, x in logits.items()}
        told[title] = Told(
            predictions={seed: frame[PREDICTIONS_SCHEMA.names] for seed, frame in frames.items()},
            failures={},
            progress={seed: invented_progress(generator, STAGES.get(entry.system, ())) for seed in of.seeds(title)},
            parameters=100_000 * len(STAGES.get(entry.system, ())) ** 2 + index,
        )
    return told, pd.DataFrame({"item_id": columns["item_id"], "seen": seen, POPULARITY: popularity})


def invented_progress(generator: np.random.Generator, stages: tuple[str, ...]) -> pd.DataFrame:
    found = []
    for stage in stages:
        steps = {"pretrain_encoder": 3000, "tune_lora": 40, "tune_hybrid": 75}[stage] - 5 * int(generator.integers(3))
        step = np.arange(1, steps + 1)
        valid = np.where(step % max(5, steps // 12) == 0, 0.6 + 0.1 * step / steps, np.nan)
        columns = {
            "stage": stage,
            "step": step,
            "loss": 0.55 + 0.15 * np.exp(-4 * step / steps) + generator.normal(0, 0.03, steps),
            "valid_auc": valid + generator.normal(0, 0.01, steps),
            "seconds": generator.gamma(2, 0.02 if stage == "pretrain_encoder" else 2.0, steps),
        }
        found.append(pd.DataFrame(columns))
    empty: pd.DataFrame = pd.DataFrame(columns=["stage", "step", "loss", "valid_auc", "seconds"])
    return pd.concat(found, ignore_index=True) if found else empty


def write(
    of: Experiment,
    told: Mapping[int | None, Mapping[str, Told]],
    counts: Mapping[int | None, pd.DataFrame],
    folder: Path,
) -> str:
    """The page; what is given lies by fold."""
    results = summarise_folds(of, told, dict.fromkeys(told, "some of the rows"))
    evidence = gather(told, counts, results["cutoff"])
    shown: dict[str, Any] = {"config_yaml": "", "versions": {"rayrec": "1"}, "notes": ["One."]}
    data = ExperimentReportData(title="e", results=results, evidence=evidence, **shown)
    return write_experiment_report(data, folder).read_text()


def captions(page: str) -> dict[str, str]:
    """Figure -> its caption."""
    found = re.findall(
        r"<figcaption>((?:(?!</figcaption>).)*?)<span class=\"file\">figures/(\w+)\.svg", page, re.DOTALL
    )
    return {name: caption for caption, name in found}


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return experiment(tmp_path_factory.mktemp("e"))


@pytest.fixture(scope="module")
def told(of: Experiment) -> dict[str, Told]:
    return invented(of)[0]


@pytest.fixture(scope="module")
def counts(of: Experiment) -> pd.DataFrame:
    return invented(of)[1]


@pytest.fixture(scope="module")
def evidence(told: dict[str, Told], counts: pd.DataFrame) -> Evidence:
    return gather({None: told}, {None: counts}, 0.4)


def each_seed(told: Mapping[str, Told], title: str) -> list[pd.DataFrame]:
    return list(told[title].predictions.values())


# ---------------------------------------------------------------------------------------------------- what they show


def test_a_confusion_matrix_counts_rows(evidence: Evidence, told: dict[str, Told]) -> None:
    for title, own in evidence.confusion.groupby("title"):
        for cell in own.to_dict("records"):
            rows, shares = [], []
            for frame in each_seed(told, str(title)):
                truth = frame[frame["label"] == (cell["label"] == "like")]
                rows.append(sum((score >= 0.4) == (cell["predicted"] == "like") for score in truth["score"]))
                shares.append(rows[-1] / len(truth))
            assert cell["count"] == pytest.approx(np.mean(rows)) and cell["share"] == pytest.approx(np.mean(shares))
            assert cell["seeds"] == len(rows)
            if len(rows) == 2:
                assert cell["share_sd"] == pytest.approx(abs(shares[0] - shares[1]) / 2**0.5)
            else:
                assert np.isnan(cell["share_sd"]) and np.isnan(cell["count_sd"])


def test_calibration_is_that_of_each_seed_averaged(evidence: Evidence, told: dict[str, Told]) -> None:
    own = evidence.calibration.set_index("title").loc["SASRecLLM"]
    ordered = [frame.sort_values("score") for frame in each_seed(told, "SASRecLLM")]
    for name, column in (("score", "score"), ("share", "label")):
        each = np.array([frame[column].to_numpy().reshape(10, 150).mean(axis=1) for frame in ordered])
        assert own[name].to_numpy() == pytest.approx(each.mean(axis=0), abs=1e-12)
        assert own[f"{name}_sd"].to_numpy() == pytest.approx(pd.DataFrame(each).std().to_numpy(), abs=1e-12)
    assert own["rows"].tolist() == [150] * 10


@pytest.mark.parametrize("column", ["seen", POPULARITY])
def test_auc_by_count_is_that_of_the_rows_in_the_bin(
    column: str, evidence: Evidence, told: dict[str, Told], counts: pd.DataFrame
) -> None:
    bins = evidence.by_history if column == "seen" else evidence.by_popularity
    assert bins.groupby("title")["rows"].sum().eq(ROWS).all() and bins.groupby("title").size().eq(5).all()
    for title in ("MC", "GRU"):
        for one in bins[bins["title"] == title].to_dict("records"):
            inside = ((counts[column] >= one["low"]) & (counts[column] <= one["high"])).to_numpy()
            aucs = [reference.roc_auc_score(f["label"][inside], f["score"][inside]) for f in each_seed(told, title)]
            assert one["rows"] == inside.sum() and one["auc"] == pytest.approx(np.mean(aucs), abs=1e-12)
            assert np.isnan(one["auc_sd"]) if len(aucs) == 1 else one["auc_sd"] == pytest.approx(np.std(aucs, ddof=1))


def test_the_training_curve_keeps_every_evaluation_and_the_mean_loss(evidence: Evidence, told: dict[str, Told]) -> None:
    assert "Bias floor" not in set(evidence.training["title"])
    for seed, progress in told["SASRecLLM"].progress.items():
        own = evidence.training[(evidence.training["title"] == "SASRecLLM") & (evidence.training["seed"] == seed)]
        assert list(dict.fromkeys(own["stage"])) == ["pretrain_encoder", "tune_lora", "tune_hybrid"]
        for stage, rows in progress.groupby("stage", sort=False):
            shown = own[own["stage"] == stage]
            judged = rows.dropna(subset="valid_auc")
            assert shown.dropna(subset="valid_auc")[["step", "valid_auc"]].to_numpy().tolist() == (
                judged[["step", "valid_auc"]].to_numpy().tolist()
            )
            losses, last = shown.dropna(subset="loss"), 0
            assert len(losses) <= 60 and losses["step"].iloc[-1] == rows["step"].iloc[-1]
            for step, loss in zip(losses["step"], losses["loss"], strict=True):
                since = rows[(rows["step"] > last) & (rows["step"] <= step)]
                assert loss == pytest.approx(since["loss"].mean(), abs=1e-12)
                last = step


def test_intervals_of_one_seed_are_those_of_a_run(of: Experiment, told: dict[str, Told]) -> None:
    found = summarise(of, told, "")["systems"]["MC"]["slices"]
    settings = of.base.evaluation
    expected = evaluate_slices(
        told["MC"].predictions[0], cutoff=settings.cutoff, resamples=settings.bootstrap, seed=of.base.seed
    )
    for part, there in expected.items():
        for name in ("auc", "uauc", "log_loss"):
            assert {key: found[part]["metrics"][name][key] for key in ("low", "high")} == {
                key: there["metrics"][name][key] for key in ("low", "high")
            }


def test_ablation_is_against_the_untouched_backbone_or_else_the_reference(
    of: Experiment, told: dict[str, Told]
) -> None:
    results = summarise(of, told, "")
    assert results["ablation"]["against"] == "ICL" and "ICL" not in results["ablation"]["changes"]
    means = {title: one["slices"]["all"]["metrics"]["auc"]["mean"] for title, one in results["systems"].items()}
    for title, change in results["ablation"]["changes"].items():
        assert change["auc"]["value"] == pytest.approx(means[title] / means["ICL"] - 1, abs=1e-12)
        assert change["auc"]["low"] < change["auc"]["value"] < change["auc"]["high"]
    lost = {"ICL": Told(predictions={}, failures={0: "gone"})}
    assert summarise(of, told | lost, "")["ablation"]["against"] == "SASRec"


# ------------------------------------------------------------------------------------------------------ how it is told


def test_every_figure_is_there_with_its_numbers_and_a_caption(
    of: Experiment, told: dict[str, Told], counts: pd.DataFrame, tmp_path: Path
) -> None:
    page = write(of, {None: told}, {None: counts}, tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{name}.svg" for name in EXPERIMENT_FIGURES}
    said = captions(page)
    assert set(said) == EXPERIMENT_FIGURES and page.count("<svg") == len(EXPERIMENT_FIGURES)
    for name in EXPERIMENT_FIGURES:
        table = pd.read_csv(tmp_path / "tables" / f"{'slices' if name == 'cold_warm' else name}.csv")
        assert len(table) > 5 and f"tables/{'slices' if name == 'cold_warm' else name}.csv" in page
        assert "some of the rows" in said[name] or name == "training"
    assert "Rows in the bins: 301, 299, 303, 300, 297." in said["auc_by_history"]
    assert "Left out" not in page and "is without seed" not in page
    assert_needs_no_network(page)
    assert_ids_are_unique(page)

    costs = pd.read_csv(tmp_path / "tables" / "cost.csv").set_index("title")
    spent = [frame["seconds"].sum() for frame in told["SASRecLLM"].progress.values()]
    assert costs.loc["SASRecLLM", "seconds"] == pytest.approx(np.mean(spent))
    assert costs.loc["SASRecLLM", "seconds_sd"] == pytest.approx(np.std(spent, ddof=1))
    assert costs.loc["ICL", ["seconds", "parameters"]].tolist() == [0, 0]
    assert costs.loc["MF", "parameters"] == told["MF"].parameters


SOME = ("SASRec", "ICL", "TALLRec")
HOSTILE = "</text><script>alert('x')</script> $\\frac{1}$ & <img src=https://example.com/x.png>"


def test_what_is_missing_is_left_out_and_told(tmp_path: Path) -> None:
    systems = {title: SYSTEMS[title] for title in SOME} | {HOSTILE: SYSTEMS["GRU"]}
    of = experiment(tmp_path, systems)
    told, counts = invented(of, 300)
    whole = told["SASRec"]
    told["SASRec"] = replace(
        whole, predictions={1: whole.predictions[1]}, progress={1: whole.progress[1]}, failures={0: "the loss is nan"}
    )
    told["ICL"] = Told(predictions={}, failures={0: "gone"})
    logless = {seed: rows.iloc[:0] for seed, rows in told["TALLRec"].progress.items()}
    told["TALLRec"] = replace(told["TALLRec"], progress=logless, parameters=None)
    page = write(of, {None: told}, {None: counts.assign(seen=0)}, tmp_path)  # all rows in one bin
    for name, caption in captions(page).items():
        assert "for want of predictions: “ICL”" in caption and "“SASRec” is without seed 0." in caption, name
        assert ("for want of logs: “TALLRec”" in caption) == (name in {"training", "cost"})
    assert "for want of saved parts: “TALLRec”" in captions(page)["cost"]
    assert "over those of “SASRec”" in captions(page)["ablation"]
    assert "<script" not in page and "<img" not in page and "Rows in the bins: 300." in page
    for path in (tmp_path / "figures").iterdir():
        assert "".join(ElementTree.parse(path).getroot().itertext()).count("<script>") or path.stem == "training", path


def test_an_experiment_of_which_nothing_ran_has_its_figures(tmp_path: Path) -> None:
    of = experiment(tmp_path, {title: SYSTEMS[title] for title in ("SASRec", "ICL")})
    told, counts = invented(of, 50)
    gone = {title: Told(predictions={}, failures={0: "gone"}) for title in told}
    page = write(of, {None: gone}, {None: counts}, tmp_path)
    assert set(captions(page)) == EXPERIMENT_FIGURES
    for text in ("nothing scored", "nothing trained", "nothing to compare"):
        assert text in page


# ------------------------------------------------------------------------------------------------------ over folds


def test_folds_are_counted_together_and_their_aucs_averaged(tmp_path: Path) -> None:
    systems = {title: SYSTEMS[title] for title in ("MC", "SASRec", "TALLRec")}
    of = experiment(tmp_path, systems, "set.data.split={folds: 2}")
    folds = {fold: invented(of, rows, draw) for fold, rows, draw in ((1, 300, 1), (2, 420, 2))}
    told: dict[int | None, dict[str, Told]] = {fold: dict(one) for fold, (one, _) in folds.items()}
    told[1]["TALLRec"] = replace(told[1]["TALLRec"], predictions={}, progress={}, failures={0: "gone", 1: "gone"})
    first = told[2]["SASRec"].predictions
    told[2]["SASRec"] = replace(told[2]["SASRec"], predictions={1: first[1]}, failures={0: "gone"})
    counts: dict[int | None, pd.DataFrame] = {fold: own for fold, (_, own) in folds.items()}
    evidence = gather(told, counts, 0.5)

    assert set(evidence.confusion["title"]) == {"MC", "SASRec"}  # TALLRec has nothing in the first fold
    assert evidence.confusion.groupby("title")["count"].sum().tolist() == [720, 720]
    assert evidence.calibration.groupby("title")["rows"].sum().tolist() == [720, 720]
    assert set(zip(evidence.training["fold"], evidence.training["seed"], strict=True)) == {(1, 1), (2, 1)}
    for title, seed in (("MC", 0), ("SASRec", 1)):
        for one in evidence.by_history[evidence.by_history["title"] == title].to_dict("records"):
            aucs, rows = [], 0
            for fold, own in counts.items():
                inside = own["seen"].between(one["low"], one["high"]).to_numpy()
                frame = told[fold][title].predictions[seed][inside]
                aucs.append(reference.roc_auc_score(frame["label"], frame["score"]))
                rows += len(frame)
            assert one["auc"] == pytest.approx(np.mean(aucs), abs=1e-12) and one["rows"] == rows and one["seeds"] == 1

    page = write(of, told, counts, tmp_path)
    for name, caption in captions(page).items():
        assert "for want of predictions: “TALLRec”" in caption and "fold" in caption, name
    costs = pd.read_csv(tmp_path / "tables" / "cost.csv").set_index("title")
    spent = [of_fold["SASRec"].progress[1]["seconds"].sum() for of_fold in told.values()]
    assert costs.loc["SASRec", "seconds"] == pytest.approx(np.mean(spent)) and "TALLRec" not in costs.index
