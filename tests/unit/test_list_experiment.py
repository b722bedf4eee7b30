"""Experiments on next items: what their files may say, and what lists of several seeds come to."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from left_out import ITEMS, SESSIONS
from pages import assert_same_files

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.vectors import save_vectors
from rayrec.errors import InputError
from rayrec.experiment import study
from rayrec.experiment.list_results import summarise_lists
from rayrec.experiment.pairs import all_pairs, name_tables, variants
from rayrec.experiment.results import Told
from rayrec.experiment.settings import Experiment, load_experiment
from rayrec.metrics import session_differences, session_metrics
from rayrec.report import ListExperimentReportData, write_list_experiment_report
from rayrec.sessions import Sessions
from rayrec.stages import StageName
from rayrec.store import store_folder

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TARGETS = [[session[-1]] for session in SESSIONS]
COUNTS = Sessions.of(session[:-2] for session in SESSIONS).counts(ITEMS)
SYSTEMS = """
  Popular: {system: most_popular}
  Near: {system: llmseqsim}
  SASRec: {system: sasrec}
  LLM2SASRec: {system: sasrec, set: {encoder.initial: {names: random_projection}}}
"""
HYBRIDS = """
  Popular: {system: most_popular}
  EmbeddingEnsemble: {system: embedding_ensemble}
  LLMSeqSim&Popularity: {system: llmseqsim_popularity}
  LLMSeqSim&LLM2SASRec: {system: llmseqsim_sequential, set: {encoder.initial: {names: random_projection}}}
"""


def experiment(folder: Path, *, systems: str = SYSTEMS, more: str = "", seeds: str = "[0, 1]") -> Experiment:
    path = folder / "experiment.yaml"
    path.write_text(
        f"name: e\nbase: {CONFIGS}/smoke_next_item.yaml\nset: {{evaluation.ks: [3], evaluation.bootstrap: 60{more}}}\n"
        f"seeds: {seeds}\nreference: Popular\nsystems:{systems}"
    )
    return load_experiment(path)


@pytest.mark.parametrize(
    ("systems", "more", "message"),
    [
        (
            "\n  Popular: {system: icl}\n",
            "",
            "systems.Popular.system: icl is not for data.task next_item; choose among most_popular, sknn",
        ),
        (
            "\n  Popular: {system: sasrec, set: {data.task: click, stages.pretrain_encoder.loss: softmax}}\n",
            "",
            "systems.Popular",
        ),
        (
            "\n  Popular: {system: most_popular, set: {evaluation.ks: [5]}}\n",
            "",
            "all systems share evaluation.ks; set it for the whole experiment",
        ),
        (
            SYSTEMS,
            ", data.split: {folds: 3}",
            "data.split.folds: of next items one fold is compared at a time; name it",
        ),
    ],
)
def test_what_cannot_be_compared_is_told(systems: str, more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        experiment(tmp_path, systems=systems, more=more)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_clicks_are_not_compared_with_lists(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(
        f"name: e\nbase: {CONFIGS}/smoke.yaml\nseeds: [0]\nreference: A\nsystems: {{A: {{system: sknn}}}}\n"
    )
    with pytest.raises(InputError, match=r"systems\.A\.system: sknn is not for data\.task click; choose among"):
        load_experiment(path)


def test_every_seeds_tables_are_prepared(tmp_path: Path) -> None:
    found = name_tables(experiment(tmp_path))
    told = [(config.seed, table.reduction, table.width) for config, _, table in found]
    assert told == [(0, "pca", 16), (0, "random_projection", 32), (1, "random_projection", 32)]


def test_hybrids_are_rows_of_an_experiment(tmp_path: Path) -> None:
    of = experiment(tmp_path, systems=HYBRIDS)
    *alone, joined = of.config.systems
    assert of.stages(joined) == ("pretrain_encoder",) and of.seeds(joined) == (0, 1)
    assert all(of.stages(title) == () and of.seeds(title) == (0,) for title in alone)
    tables = [(config.seed, table.reduction, table.width) for config, _, table in name_tables(of)]
    whole, near = (0, None, None), (0, "pca", 16)
    projected = [(seed, "random_projection", 32) for seed in (0, 1)]
    assert tables == [near, whole, near, near, projected[0], (1, "pca", 16), projected[1]]
    assert any("NDCG@20 of all validation sessions chose" in note for note in study._notes(of))
    assert not any("hybrid" in note for note in study._notes(experiment(tmp_path)))


def lists_of(seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    frame: pd.DataFrame = pd.DataFrame(
        {
            c.USER_ID: range(len(SESSIONS)),
            c.HELD_OUT: TARGETS,
            c.RANKED: [(draw.permutation(ITEMS)[: 1 + i % 6] + 1).tolist() for i in range(len(SESSIONS))],
        }
    )
    return frame


def told() -> dict[str, Told]:
    return {
        "Popular": Told(predictions={0: lists_of(9)}, failures={}),
        "Near": Told(predictions={}, failures={0: "no reason"}),
        "SASRec": Told(predictions={0: lists_of(1), 1: lists_of(2)}, failures={}),
        "LLM2SASRec": Told(predictions={1: lists_of(4)}, failures={0: "lost"}),
    }


def slow(frame: pd.DataFrame) -> dict[str, list[float]]:
    """NDCG@3 and HR@3 of every session."""
    places = [
        [*ranked[:3]].index(held[0]) + 1 if held[0] in ranked[:3] else 0
        for ranked, held in zip(frame[c.RANKED], frame[c.HELD_OUT], strict=True)
    ]
    return {
        "ndcg@3": [1 / math.log2(place + 1) if place else 0.0 for place in places],
        "hr@3": [float(place > 0) for place in places],
    }


def test_means_and_spreads_are_over_seeds_and_differences_over_sessions(tmp_path: Path) -> None:
    results = summarise_lists(experiment(tmp_path), told(), COUNTS, "all of them")
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["metrics"] == ["ndcg@3", "hr@3", "mrr@3", "coverage@3", "serendipity@3", "novelty@3"]
    own, first = (results["systems"][title] for title in ("SASRec", "Popular"))
    shown, minus = (own["slices"]["all"][key] for key in ("metrics", "minus_reference"))
    each = [slow(lists_of(1)), slow(lists_of(2))]
    reference = slow(lists_of(9))
    for name in ("ndcg@3", "hr@3"):
        values = [float(np.mean(one[name])) for one in each]
        assert shown[name]["seeds"] == {"0": pytest.approx(values[0]), "1": pytest.approx(values[1])}
        assert shown[name]["mean"] == pytest.approx(sum(values) / 2)
        assert shown[name]["sd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
        assert shown[name]["low"] <= shown[name]["mean"] <= shown[name]["high"]
        assert minus[name]["value"] == pytest.approx(sum(values) / 2 - np.mean(reference[name]))
    covered = [{item for ranked in lists_of(seed)[c.RANKED] for item in ranked[:3]} for seed in (1, 2)]
    assert shown["coverage@3"]["mean"] == pytest.approx(sum(map(len, covered)) / 2 / ITEMS)
    assert shown["coverage@3"]["low"] is None and "coverage@3" not in minus
    assert first["slices"]["all"]["minus_reference"] == {} and first["slices"]["all"]["metrics"]["hr@3"]["sd"] is None
    assert results["systems"]["Near"]["slices"]["all"]["metrics"] == {}
    assert results["systems"]["LLM2SASRec"]["failures"] == {"0": "lost"}


def test_differences_are_those_of_the_same_sessions(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    results = summarise_lists(of, told(), COUNTS, "")
    values = []
    for seed in (4, 9):
        lists = [[*ranked[:3], 0, 0, 0][:3] for ranked in lists_of(seed)[c.RANKED]]
        values.append(session_metrics(lists, Sessions.of(TARGETS), COUNTS, (3,)))
    expected = session_differences(*values, resamples=60, seed=of.base.seed)
    found = results["systems"]["LLM2SASRec"]["slices"]["all"]["minus_reference"]
    assert [*found] == [*expected]
    for name, difference in expected.items():
        assert found[name] == pytest.approx(difference._asdict())


def test_the_best_is_named(tmp_path: Path) -> None:
    best = summarise_lists(experiment(tmp_path), told(), COUNTS, "")["best"]["all"]
    means = {
        "Popular": np.mean(slow(lists_of(9))["hr@3"]),
        "SASRec": np.mean([slow(lists_of(seed))["hr@3"] for seed in (1, 2)]),
        "LLM2SASRec": np.mean(slow(lists_of(4))["hr@3"]),
    }
    assert best["hr@3"]["title"] == max(means, key=lambda title: float(means[title]))
    assert best["coverage@3"] is None


def test_what_validation_chose_is_told(tmp_path: Path) -> None:
    chosen = {seed: {"quantile": 0.25 + seed / 2, "valid_ndcg": 0.0421} for seed in (0, 1)}
    lists = {seed: lists_of(seed) for seed in (0, 1)}
    of = experiment(tmp_path, systems=HYBRIDS)
    rows = {title: Told(predictions={0: lists[0]}, failures={}) for title in of.config.systems}
    rows["LLMSeqSim&LLM2SASRec"] = Told(predictions=lists, failures={}, chosen=chosen)
    results = summarise_lists(of, rows, COUNTS, "ten sessions")
    assert results["systems"]["LLMSeqSim&LLM2SASRec"]["chosen"] == {"0": chosen[0], "1": chosen[1]}
    assert "chosen" not in results["systems"]["Popular"]
    data = ListExperimentReportData(title="t", results=results, config_yaml="a: 1", versions={}, notes=[])
    page = write_list_experiment_report(data, tmp_path / "page").read_text()
    assert "seed 1: quantile 0.75, valid_ndcg 0.0421" in page and "LLMSeqSim&amp;LLM2SASRec" in page


# A title that was asked for some of the sessions

ASKED = [1, 4, 6]


def with_answers() -> dict[str, Told]:
    frames = {}
    for seed, unknown in ((0, 1), (1, 2)):
        frame = lists_of(20 + seed).iloc[ASKED].reset_index(drop=True)
        frames[seed] = frame.assign(
            **{c.RANKED: [TARGETS[i] for i in ASKED], c.SAID: 3, c.UNKNOWN: [unknown, 0, 0], c.BARRED: 0}
        )
    return told() | {"Prompt": Told(predictions=frames, failures={})}


def prepare_nothing(of: Experiment) -> None:
    """As if its data were prepared, and the tables of names."""
    for variant in variants(of):
        manifest = {"users": 2, "items": 3, "mean_liked_per_training_user": 2.4}
        manifest |= {"files": {"items.parquet": "a1"}}
        manifest |= {"splits": {split: {"rows": 9} for split in ("train", "valid", "test")}}
        storage.write_text(f"{variant.data.folder}/manifest.json", json.dumps(manifest))
        for beside in variant.beside:
            storage.write_text(beside.mark(variant.data.folder), json.dumps({"files": {"train": "b2"}}))
    for config, data, table in name_tables(of):
        save_vectors(data.table_folder(table, store_folder(config)), np.ones((3, 2), np.float32), {})


PROMPTED = SYSTEMS + "  Prompt: {system: llmseqprompt, set: {stages.tune_answers: {epochs: 1}}}\n"


def test_titles_are_compared_in_the_sessions_that_they_were_asked_for(tmp_path: Path) -> None:
    results = summarise_lists(
        experiment(tmp_path, systems=PROMPTED), with_answers(), COUNTS, "all ten; the same for all"
    )
    assert results["sample"] == "all ten; the same for all but Prompt (3 of them)"
    own = results["systems"]["Prompt"]
    assert own["slices"]["all"]["counts"] == own["slices"]["common"]["counts"] == {"sessions": 3}
    assert own["slices"]["all"]["metrics"]["hr@3"]["mean"] == 1
    first = results["systems"]["Popular"]["slices"]
    assert first["all"]["counts"] == {"sessions": 10} and first["common"]["counts"] == {"sessions": 3}
    for name, values in slow(lists_of(9)).items():
        assert first["all"]["metrics"][name]["mean"] == pytest.approx(np.mean(values))
        assert first["common"]["metrics"][name]["mean"] == pytest.approx(np.mean([values[i] for i in ASKED]))
    missed = 1 - first["common"]["metrics"]["hr@3"]["mean"]
    for part in ("all", "common"):
        assert own["slices"][part]["minus_reference"]["hr@3"]["value"] == pytest.approx(missed)
    assert results["best"]["all"] == summarise_lists(experiment(tmp_path), told(), COUNTS, "")["best"]["all"]
    assert results["best"]["common"]["hr@3"]["title"] == "Prompt"
    assert own["answers"] == {"names": 18, "unknown": 3 / 18, "barred": 0, "mapped": 3 / 18}
    assert "answers" not in results["systems"]["Popular"]
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_the_page_shows_both(tmp_path: Path) -> None:
    results = summarise_lists(experiment(tmp_path, systems=PROMPTED), with_answers(), COUNTS, "ten")
    data = ListExperimentReportData(title="t", results=results, config_yaml="a: 1", versions={"x": "1"}, notes=["n"])
    page = write_list_experiment_report(data, tmp_path / "one").read_text()
    assert "In the sessions that every system was asked for" in page and "Answers in words" in page
    tables = {
        name: pd.read_csv(tmp_path / "one" / "tables" / f"{name}.csv") for name in ("results", "common", "answers")
    }
    assert tables["results"].set_index("title")["sessions"].dropna().to_dict() == {
        "Popular": 10,
        "SASRec": 10,
        "LLM2SASRec": 10,
        "Prompt": 3,
    }
    assert set(tables["common"]["sessions"].dropna()) == {3} and tables["answers"]["mapped"].tolist() == [3 / 18]


def test_a_title_that_alone_is_asked_for_fewer_is_compared_too(tmp_path: Path) -> None:
    """With the reference only, none of the two is the best of all sessions; their difference is known all the same."""
    systems = "\n  Popular: {system: most_popular}\n" + PROMPTED[len(SYSTEMS) :]
    few = {title: one for title, one in with_answers().items() if title in {"Popular", "Prompt"}}
    results = summarise_lists(experiment(tmp_path, systems=systems), few, COUNTS, "ten")
    data = ListExperimentReportData(title="t", results=results, config_yaml="a: 1", versions={"x": "1"}, notes=["n"])
    write_list_experiment_report(data, tmp_path / "one")
    row = pd.read_csv(tmp_path / "one" / "tables" / "differences.csv").set_index("title").loc["Prompt"]
    minus = results["systems"]["Prompt"]["slices"]["all"]["minus_reference"]
    assert row["hr@3_value"] == pytest.approx(minus["hr@3"]["value"]) and "coverage@3_value" not in row


def test_a_title_needs_the_stage_that_trains_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        experiment(tmp_path, systems=SYSTEMS + "  Prompt: {system: llmseqprompt}\n")
    assert str(caught.value).endswith(
        "systems.Prompt: llmseqprompt is trained by tune_answers; set stages.tune_answers for it, at least to {}"
    )


RERANKED = SYSTEMS + "  LLM: {system: sasrecllm, set: {ranking.sasrecllm: {sessions: 9}, engine.precision: fp32}}\n"


def test_a_row_of_sasrecllm_moves_no_other(tmp_path: Path) -> None:
    """It shares their rows and SASRec's encoder; what is asked lies beside, and no other pair is addressed by it."""
    own, found = f", storage: {tmp_path}/runs", []
    for systems in (SYSTEMS, RERANKED):
        of = experiment(tmp_path, systems=systems, more=own)
        prepare_nothing(of)
        found.append({(pair.title, pair.seed): pair for pair in all_pairs(of)})
    before, after = found
    assert all(after[key].fingerprint == pair.fingerprint for key, pair in before.items())
    assert [*after["LLM", 1].jobs] == ["pretrain_encoder", "tune_lora", "tune_hybrid"]
    encoder = StageName.PRETRAIN_ENCODER
    assert after["LLM", 1].jobs[encoder].folder == after["SASRec", 1].jobs[encoder].folder
    (variant,) = variants(experiment(tmp_path, systems=RERANKED, more=own))
    assert variant.beside == {Beside.ASKED, Beside.PROMPTS}
    notes = study._notes(experiment(tmp_path, systems=RERANKED, more=own))
    assert any(note.startswith("LLM puts the 100 best of its encoder in order") for note in notes)


def test_what_is_not_trained_draws_by_a_seed_too(tmp_path: Path) -> None:
    """Neighbours where there are no times, projections of names: another seed gives other lists."""
    marks, untrained = [], SYSTEMS.partition("  SASRec")[0]
    for seeds in ("[0, 1]", "[0]", "[1]"):
        of = experiment(tmp_path, systems=untrained, seeds=seeds, more=f", storage: {tmp_path}/runs")
        prepare_nothing(of)
        marks.append({pair.title: pair.fingerprint for pair in all_pairs(of)})
    both, first, second = marks
    assert both == first and all(first[title] != second[title] for title in ("Popular", "Near"))


def test_questions_of_other_forms_lie_beside_rows_of_their_own(tmp_path: Path) -> None:
    forms = "".join(
        f"  {title}: {{system: llmseqprompt, set: {{stages.tune_answers: {{}}, ranking.llmseqprompt.form: {form}}}}}\n"
        for title, form in (("One", "genitem"), ("List", "genlist"))
    )
    found = {tuple(one.titles): one.beside for one in variants(experiment(tmp_path, systems=SYSTEMS + forms))}
    plain = ("Popular", "Near", "SASRec", "LLM2SASRec")
    assert found == {plain: frozenset(), ("One",): {Beside.ANSWERS}, ("List",): {Beside.ANSWERS}}


def test_the_page_shows_it(tmp_path: Path) -> None:
    results: dict[str, Any] = summarise_lists(experiment(tmp_path), told(), COUNTS, "ten sessions")
    data = ListExperimentReportData(title="t", results=results, config_yaml="a: 1", versions={"x": "1"}, notes=["n"])
    page = write_list_experiment_report(data, tmp_path / "one").read_text()
    assert "NDCG@3" in page and "LLM2SASRec" in page and "no reason" in page and "Sample: ten sessions." in page
    table = pd.read_csv(tmp_path / "one" / "tables" / "results.csv").set_index("title")
    shown = results["systems"]["SASRec"]["slices"]["all"]["metrics"]["ndcg@3"]
    assert (table.loc["SASRec", "ndcg@3"], table.loc["SASRec", "ndcg@3_sd"]) == (shown["mean"], shown["sd"])
    assert {path.suffix for path in (tmp_path / "one" / "tables").glob("differences.*")} == {".csv", ".md", ".tex"}
    write_list_experiment_report(data, tmp_path / "two")
    assert_same_files(tmp_path / "one", tmp_path / "two")
