"""What is made of lists: metrics of every slice against a slow loop, and the page."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from left_out import ITEMS, SESSIONS, encoder_of, prepared_run
from pages import assert_ids_are_unique, assert_needs_no_network, assert_same_files

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.catalogue import lists_table, training_counts
from rayrec.evaluation import next_item as judged
from rayrec.evaluation import predictions, sample
from rayrec.run import Run
from rayrec.stages import EncoderKind
from rayrec.systems import SystemName

TARGETS = [session[-1] for session in SESSIONS]
KS = (3, 5)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Every system has lists: its own permutation of the catalogue for each session, some of them cut short."""
    made = prepared_run(tmp_path)
    made.bind()
    draw = np.random.default_rng(5)
    for number, system in enumerate(made.systems):
        lists = np.array([draw.permutation(ITEMS)[:5] + 1 for _ in SESSIONS])
        lists[number, 2:] = 0
        predictions.write_lists(
            made, predictions.predictions_path(made, system), np.arange(len(SESSIONS)), lists_table(lists)
        )
    lines = [
        {"step": step, "loss": 3 - step / 9, "rows_per_s": 9.0, "tokens_per_s": 0.0, "wait_share": 0.1}
        | ({"valid_ndcg": step / 90, "valid_hr": step / 50} if step % 4 == 0 else {})
        for step in range(1, 13)
    ]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write_text(made.path("stages", "pretrain_encoder", "progress.jsonl"), log)
    return made


def slow(ranked: list[int], target: int, k: int) -> dict[str, float]:
    place = ranked[:k].index(target) + 1 if target in ranked[:k] else 0
    found = float(place > 0)
    return {"ndcg": found / math.log2(place + 1) if place else 0, "hr": found, "mrr": found / place if place else 0}


def test_metrics_are_those_of_a_slow_loop(run: Run) -> None:
    metrics = judged.write_list_metrics(run)
    assert json.loads(storage.read_text(run.path("metrics.json"))) == metrics
    assert [*metrics] == [system.value for system in run.systems]
    slices = judged.session_slices(run)
    hits = 0.0
    for system in run.systems:
        frame = predictions.read_predictions(run, system)
        lists = [[*ranked] for ranked in frame["ranked"]]
        assert [*metrics[system]] == [*slices]
        for name, inside in slices.items():
            chosen = [i for i in range(len(SESSIONS)) if inside[i]]
            counts = {"sessions": len(chosen), "items": len({TARGETS[i] for i in chosen})}
            assert metrics[system][name]["counts"] == counts
            for k in KS:
                each = [slow(lists[i], TARGETS[i], k) for i in chosen]
                for metric in ("ndcg", "hr", "mrr"):
                    found = metrics[system][name]["metrics"][f"{metric}@{k}"]
                    assert found["value"] == pytest.approx(np.mean([one[metric] for one in each]))
                    assert len(chosen) == 1 or found["low"] <= found["value"] <= found["high"]
                    hits += found["value"]
                covered = {item for i in chosen for item in lists[i][:k]}
                assert metrics[system][name]["metrics"][f"coverage@{k}"] == {
                    "value": len(covered) / ITEMS,
                    "low": None,
                    "high": None,
                }
    assert hits > 0


def test_slices_part_the_sessions(run: Run) -> None:
    slices = judged.session_slices(run)
    counts = training_counts(run.data.folder)
    assert slices["all"].all() and np.array_equal(slices["warm"], ~slices["cold"]) and slices["warm"].any()
    assert slices["warm"].tolist() == [bool(counts[target] > 3) for target in TARGETS]
    for name, values in (
        ("history", [len(session) - 1 for session in SESSIONS]),
        ("popularity", [int(counts[target]) for target in TARGETS]),
    ):
        own = {key: inside for key, inside in slices.items() if key.startswith(name)}
        assert len(own) > 1 and (np.sum([*own.values()], axis=0) == 1).all()
        for key, inside in own.items():
            low, _, high = key.removeprefix(f"{name} ").partition("-")
            held = [value for value, is_in in zip(values, inside, strict=True) if is_in]
            assert (min(held), max(held)) == (int(low), int(high or low))


def test_an_empty_slice_has_no_value() -> None:
    nothing: dict[str, Any] = {"ndcg@5": np.array([])}
    assert judged._estimated(nothing, 10, 0) == {"ndcg@5": {"value": None, "low": None, "high": None}}
    single = judged._estimated({"ndcg@5": np.array([0.5])}, 10, 0)
    assert single == {"ndcg@5": {"value": 0.5, "low": None, "high": None}}


def test_the_terminal_shows_the_longest_lists(run: Run) -> None:
    metrics = judged.write_list_metrics(run)
    rows = judged.metric_rows(run, metrics)
    assert [*rows.columns] == ["NDCG@5", "HR@5", "MRR@5", "coverage@5"]
    assert [*rows.index] == [*run.titles.values()]
    assert rows.loc["SASRec", "HR@5"] == metrics["sasrec"]["all"]["metrics"]["hr@5"]["value"]


def test_the_page_shows_it_all(run: Run, tmp_path: Path) -> None:
    metrics = judged.write_list_metrics(run)
    page = Path(judged.write_run_list_report(run, metrics)).read_text()
    assert_needs_no_network(page)
    assert_ids_are_unique(page)
    report = Path(run.path("report"))
    headline = pd.read_csv(report / "tables" / "headline.csv")
    assert headline["ndcg@5"].tolist() == [m["all"]["metrics"]["ndcg@5"]["value"] for m in metrics.values()]
    slices = pd.read_csv(report / "tables" / "slices.csv")
    assert {*slices["slice"]} == {*judged.session_slices(run)} - {"all"}
    differences = pd.read_csv(report / "tables" / "differences.csv")
    assert len(differences) == len(run.systems) - 1 and {*differences["minus"]} == {"most_popular"}
    own, first = (headline["hr@5"].iloc[i] for i in (-1, 0))
    assert differences["hr@5"].iloc[-1] == pytest.approx(own - first)
    throughput = pd.read_csv(report / "tables" / "throughput.csv")
    assert throughput["best_valid_ndcg"].tolist() == [pytest.approx(12 / 90)]
    assert "Best valid. NDCG@20" in page and "Validation NDCG@20 (line) and HR@20 (dashes)" in page
    assert "The data is generated" in page and "no times" not in page and "Compared with MostPopular" in page
    again = tmp_path / "again"
    report.rename(again)
    judged.write_run_list_report(run, metrics)
    assert_same_files(again, report)


# A system that was asked for some of the sessions


@pytest.fixture
def partial(tmp_path: Path) -> Run:
    """LLMSeqPrompt has lists of four sessions, which are right: on the whole nobody is as good."""
    changes = {"stages.tune_answers": {}, "ranking.llmseqprompt.sessions": 4}
    made = prepared_run(tmp_path, changes)
    made.bind()
    draw = np.random.default_rng(5)
    for system in made.systems:
        ids = sample.judged_rows(made, system, sample.test_sample(made))
        lists = lists_table(np.array([draw.permutation(ITEMS)[:5] + 1 for _ in ids]))
        if system is SystemName.LLMSEQPROMPT:
            assert len(ids) == 4
            lists = lists_table(np.array([[TARGETS[i]] for i in ids]))
            for name, counts in ((c.SAID, [5, 5, 5, 1]), (c.UNKNOWN, [2, 0, 1, 0]), (c.BARRED, [1, 0, 0, 0])):
                lists = lists.append_column(name, pa.array(counts, pa.int32()))
        predictions.write_lists(made, predictions.predictions_path(made, system), ids, lists)
    return made


def test_every_system_is_judged_on_the_sessions_that_all_were_asked_for(partial: Run) -> None:
    metrics = judged.write_list_metrics(partial)
    ids = sample.judged_rows(partial, SystemName.LLMSEQPROMPT, sample.test_sample(partial))
    assert np.flatnonzero(judged.session_slices(partial)["common"]).tolist() == ids.tolist()
    for system in partial.systems:
        lists = dict(enumerate(predictions.read_predictions(partial, system)["ranked"]))
        if system is SystemName.LLMSEQPROMPT:
            assert metrics[system]["all"] == metrics[system]["common"]
            assert metrics[system]["all"]["metrics"]["hr@3"]["value"] == 1
            lists = dict(zip(ids.tolist(), lists.values(), strict=True))
        else:
            assert metrics[system]["all"]["counts"]["sessions"] == 10
        assert metrics[system]["common"]["counts"]["sessions"] == 4
        each = [slow([*lists[i]], TARGETS[i], 3) for i in ids]
        assert metrics[system]["common"]["metrics"]["ndcg@3"]["value"] == pytest.approx(
            np.mean([one["ndcg"] for one in each])
        )
    for name, inside in judged.session_slices(partial).items():
        counts = metrics["llmseqprompt"][name]["counts"]
        assert counts["sessions"] == np.isin(ids, np.flatnonzero(inside)).sum()


def test_the_share_of_names_that_were_mapped_is_told(partial: Run) -> None:
    metrics = judged.write_list_metrics(partial)
    expected = {"names": 16, "unknown": 3 / 16, "barred": 1 / 16, "mapped": 4 / 16}
    assert metrics["llmseqprompt"]["all"]["answers"] == expected
    assert "answers" not in metrics["sasrec"]["all"]
    page = Path(judged.write_run_list_report(partial, metrics)).read_text()
    table = pd.read_csv(Path(partial.path("report")) / "tables" / "answers.csv")
    assert table.to_dict("records") == [{"title": "LLMSeqPrompt", **expected}]
    assert "Answers in words" in page and "tune_answers by log p of answers" in page and "the form genitem" in page


def test_who_was_asked_for_less_is_shown_and_compared_in_what_it_was_asked_for(partial: Run) -> None:
    metrics = judged.write_list_metrics(partial)
    rows = judged.metric_rows(partial, metrics)
    assert rows["sessions"].to_dict() == dict.fromkeys(rows.index, 10) | {"LLMSeqPrompt": 4}
    page = Path(judged.write_run_list_report(partial, metrics)).read_text()
    assert "the same for every system but LLMSeqPrompt (4 of them)" in page and "is never bold" in page
    folder = Path(partial.path("report")) / "tables"
    differences = pd.read_csv(folder / "differences.csv").set_index("system")
    common = pd.read_csv(folder / "slices.csv").query("slice == 'common'").set_index("system")["hr@5"]
    assert differences.loc["llmseqprompt", "hr@5"] == pytest.approx(common["llmseqprompt"] - common["most_popular"])
    headline, lengths, *others = (row for row in page.split("<tr>") if "</i>LLMSeqPrompt" in row)
    assert ">1.000<" in headline and " best" not in headline + lengths and any(" best" in row for row in others)


def test_a_page_of_data_without_times_says_so(tmp_path: Path) -> None:
    notes = judged._notes(prepared_run(tmp_path, {"stages.pretrain_encoder.valid_users": 4}, timed=False))
    assert any(note.startswith("The data has an order and no times") for note in notes)
    assert any("a fixed sample of 4 validation sessions" in note for note in notes)
    assert not any(note.startswith("Settings of hybrids") for note in notes)


def test_a_page_with_sasrecllm_says_what_it_puts_in_order(tmp_path: Path) -> None:
    changes = {"ranking.sasrecllm": {"candidates": 9}, "stages.tune_lora.valid_users": 4}
    notes = judged._notes(prepared_run(tmp_path, changes | encoder_of(EncoderKind.GRU)))
    assert any(note.startswith("GRU4RecLLM puts the 9 best of its encoder in order") for note in notes)
    assert any("tune_lora by AUC on a fixed sample of 4 validation sessions" in note for note in notes)
    assert not any("puts the" in note for note in judged._notes(prepared_run(tmp_path / "other")))


def test_the_page_tells_the_settings_of_hybrids(run: Run) -> None:
    path = predictions.choice_path(run, SystemName.LLMSEQSIM_SEQUENTIAL)
    storage.write_text(path, json.dumps({"quantile": 0.25, "valid_ndcg": 0.04321}))
    assert any(note.endswith(": LLMSeqSim&SASRec: quantile 0.25, valid_ndcg 0.04321.") for note in judged._notes(run))
