"""Of next items: from lists to ``metrics.json`` and the report."""

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from rayrec import storage
from rayrec.binding import package_versions
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.catalogue import open_sessions, training_counts
from rayrec.data.collate import padded
from rayrec.evaluation.predictions import choice_path, predictions_path, read_predictions
from rayrec.evaluation.sample import describe_judged, judged_rows, test_sample
from rayrec.metrics import answer_shares, catalogue_coverage, quantile_bin, session_estimates, session_metrics
from rayrec.metrics.pointwise import FloatArray
from rayrec.report import ListReportData, write_list_report
from rayrec.report.list_page import COMMON
from rayrec.run import Run
from rayrec.sessions import Index, Sessions
from rayrec.stages import VALID_K, StageName
from rayrec.systems import SystemName
from rayrec.training.log import recorded

COVERAGE: Final = "coverage"
SHOWN: Final = ("ndcg", "hr", "mrr", COVERAGE)  # in the terminal, at the longest cut-off
_BINS: Final = 4  # of history lengths, and of the target's popularity

Slices = Mapping[str, NDArray[np.bool_]]


def write_list_metrics(run: Run) -> dict[str, Any]:
    """Metrics of every system's lists, with intervals and counts; also written to ``metrics.json``.

    System -> slice -> {"counts": {"sessions", "items"}, "metrics": {"ndcg@20": {"value", "low", "high"}}}. Intervals
    are over sessions; coverage has none. Of a system that answers in words "answers" as well, as ``answer_shares``.
    """
    counts, slices = training_counts(run.data.folder), session_slices(run)
    metrics = {system.value: _metrics(run, system, counts, slices) for system in run.systems}
    storage.write_text(run.path("metrics.json"), json.dumps(metrics, indent=2) + "\n")
    return metrics


def session_slices(run: Run) -> Slices:
    """Slice -> which test sessions are in it, shape (sessions,).

    Warm and cold as the rows say; bins of about equal count by items before the target, and by the target's events in
    training. Where some system was asked for fewer, those that all of them were asked for, too.
    """
    ids = test_sample(run)
    rows = open_sessions(run.data.folder, "test").frame(ids)
    popularity = training_counts(run.data.folder)[rows[c.ITEM_ID].to_numpy()]
    warm = rows[c.IS_WARM].to_numpy()
    slices = {"all": np.ones(len(ids), bool), "warm": warm, "cold": ~warm}
    for name, values in (("history", rows[c.SEEN].to_numpy()), ("popularity", popularity)):
        place = quantile_bin(values, _BINS)
        for number in range(place.max() + 1):
            inside = place == number
            low, high = values[inside].min(), values[inside].max()
            slices[f"{name} {low}" if low == high else f"{name} {low}-{high}"] = inside
    common = np.logical_and.reduce([is_judged(run, system) for system in run.systems])
    return slices if common.all() else slices | {COMMON: common}


def is_judged(run: Run, system: SystemName) -> NDArray[np.bool_]:
    """Which test sessions a system was asked for, shape (sessions,)."""
    ids = test_sample(run)
    return np.isin(ids, judged_rows(run, system, ids))


def _metrics(run: Run, system: SystemName, counts: Index, slices: Slices) -> dict[str, Any]:
    settings = run.config.evaluation
    lists, held_out = read_lists(run, system)
    values, told = session_metrics(lists, held_out, counts, settings.ks), read_predictions(run, system)
    found, own = {}, is_judged(run, system)
    for name, mask in slices.items():
        inside = mask[own]
        shown = {
            f"{COVERAGE}@{k}": {
                "value": catalogue_coverage(lists[inside], len(counts) - 1, k),
                "low": None,
                "high": None,
            }
            for k in settings.ks
        }
        chosen = {metric: column[inside] for metric, column in values.items()}
        found[name] = {
            "counts": {"sessions": int(inside.sum()), "items": len(np.unique(held_out.items[inside]))},
            "metrics": _estimated(chosen, settings.bootstrap, run.config.seed) | shown,
        }
        if c.SAID in told:
            names = (told[column][inside].to_numpy() for column in (c.SAID, c.UNKNOWN, c.BARRED))
            found[name]["answers"] = answer_shares(*names)
    return found


def _estimated(values: Mapping[str, FloatArray], resamples: int, seed: int) -> dict[str, Any]:
    """Plain data for JSON: null, never NaN, for what an empty slice or a single session does not tell."""
    if not len(next(iter(values.values()))):
        return {name: {"value": None, "low": None, "high": None} for name in values}
    found = session_estimates(values, resamples=resamples, seed=seed)
    return {
        name: {key: None if np.isnan(value) else value for key, value in estimate._asdict().items()}
        for name, estimate in found.items()
    }


def read_lists(run: Run, system: SystemName) -> tuple[Index, Sessions]:
    """A system's lists, shape (sessions, places) with 0 for an empty place, and what was held out."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(predictions_path(run, system))))
    held_out = table[c.HELD_OUT].combine_chunks()
    return padded(table[c.RANKED])[0], Sessions(held_out.flatten().to_numpy(), held_out.offsets.to_numpy())


def metric_rows(run: Run, metrics: Mapping[str, Any]) -> pd.DataFrame:
    """What the terminal shows: a row a system, the metrics of ``SHOWN`` at the longest cut-off."""
    k = max(run.config.evaluation.ks)
    values = {
        title: [metrics[system.value]["all"]["metrics"][f"{name}@{k}"]["value"] for name in SHOWN]
        for system, title in run.titles.items()
    }
    columns = [*(f"{name.upper()}@{k}" for name in SHOWN[:-1]), f"{COVERAGE}@{k}"]
    frame: pd.DataFrame = pd.DataFrame.from_dict(values, orient="index", columns=columns)
    sessions = [metrics[system.value]["all"]["counts"]["sessions"] for system in run.titles]
    return frame if len(set(sessions)) == 1 else frame.assign(sessions=sessions)


def write_run_list_report(run: Run, metrics: Mapping[str, Any]) -> str:
    """The report of a finished run; returns the place of its page."""
    held = yaml.safe_load(storage.read_text(run.path("config.yaml")))
    counts, ks = training_counts(run.data.folder), run.config.evaluation.ks
    data = ListReportData(
        title=f"{run.config.name}: {run.config.data.dataset}",
        config_yaml=yaml.safe_dump(held["run"] | held["config"], sort_keys=False, allow_unicode=True),
        versions=package_versions(),
        manifest=run.manifest,
        metrics=metrics,
        values={system.value: _values(run, system, counts) for system in run.systems},
        titles={system.value: title for system, title in run.titles.items()},
        ks=ks,
        progress={stage.value: recorded(run.path("stages", stage.value)) for stage in run.stages},
        sample=describe_judged(run),
        notes=_notes(run),
    )
    with tempfile.TemporaryDirectory() as scratch:
        write_list_report(data, Path(scratch))
        storage.upload(Path(scratch), run.path("report"))
    return run.path("report", "index.html")


def _values(run: Run, system: SystemName, counts: Index) -> dict[str, FloatArray]:
    """One number for each session of the sample, NaN for those that the system was not asked for."""
    own, found = is_judged(run, system), {}
    for name, values in session_metrics(*read_lists(run, system), counts, run.config.evaluation.ks).items():
        found[name] = np.full(len(own), np.nan)
        found[name][own] = values
    return found


def _chosen(config: Config, stage: StageName) -> str:
    """What a stage's checkpoint was chosen by."""
    sampled = config.stages[stage].valid_users
    judged = "all validation sessions" if sampled is None else f"a fixed sample of {sampled:,} validation sessions"
    return f"{stage} by {config.judged_by(stage).shown} on {judged}"


def _notes(run: Run) -> list[str]:
    """What a reader must know before quoting a figure."""
    config, manifest = run.config, run.manifest
    notes = [
        "One training seed; intervals are 95% bootstrap intervals over test sessions and say nothing of other seeds.",
        f"Checkpoints were chosen on validation: {'; '.join(_chosen(config, stage) for stage in run.stages)}. The test"
        " sessions were ranked once, at the end.",
        "Every list is of the whole catalogue without the session's own items, so that an item that comes again counts"
        " as missed. Items that training never saw are in no list, but for those of systems that know them by name.",
    ]
    chosen = [f"{title}: {told}" for system, title in run.titles.items() if (told := _choice(run, system))]
    if chosen:
        why = f"Settings of hybrids, chosen by NDCG@{VALID_K} of all validation sessions where that is told"
        notes.append(f"{why}: {'; '.join(chosen)}.")
    if SystemName.LLMSEQPROMPT in run.systems:
        notes.append(
            f"LLMSeqPrompt was asked in the form {config.ranking.llmseqprompt.form}. In the place of a name that is no"
            " item's, or one that the session or the list has already, stands the item left whose name is most like it."
        )
    if config.ranking.sasrecllm is not None:
        notes.append(rerank_note(run.titles[SystemName.SASRECLLM], config.ranking.sasrecllm.candidates))
    if not manifest["timed"]:
        notes.insert(
            0,
            "The data has an order and no times: every session is cut on its own, so that training knows of what came"
            " later in other sessions, and neighbours are sampled at random instead of by age. Figures of a split by"
            " time are lower, and not comparable.",
        )
    if config.data.dataset == "synthetic":
        notes.insert(0, "The data is generated: these figures show that the machinery works and nothing else.")
    return notes


def rerank_note(title: str, candidates: int) -> str:
    """What a reader must know of a system that puts an encoder's candidates in order."""
    return (
        f"{title} puts the {candidates} best of its encoder in order, which is all that it can find. It learned Yes"
        " from targets and No from as many items drawn by their events in training."
    )


def _choice(run: Run, system: SystemName) -> str:
    path = choice_path(run, system)
    told = json.loads(storage.read_text(path)) if storage.exists(path) else {}
    return ", ".join(f"{name} {value:.4g}" for name, value in told.items())
