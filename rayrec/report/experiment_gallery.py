"""The figures of an experiment with their captions: what is shown, what is left out, what is approximate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rayrec.report import experiment_figures as compared
from rayrec.report import experiment_panels as panels
from rayrec.report.experiment_cells import Results
from rayrec.report.page import Drawn
from rayrec.report.tables import number

_SPREAD: Final = "Means over training seeds; ± and bars: sample standard deviation over the seeds, not over users."
_INTERVAL: Final = "Bars: 95% intervals of a bootstrap over test users, for these training seeds alone."


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the figures show beside ``results.json``: a row for each thing drawn, in the order of the titles.

    ``*_sd`` is the sample standard deviation over ``seeds`` training seeds, NaN for one. A frame without rows
    may be without columns, but for the titles.
    """

    confusion: pd.DataFrame  # title, label, predicted, count, count_sd, share (of the label's rows), share_sd, seeds
    calibration: pd.DataFrame  # title, bin, rows, score, score_sd, share (of likes), share_sd, seeds
    by_history: pd.DataFrame  # title, bin, low, high, rows, auc, auc_sd, seeds
    by_popularity: pd.DataFrame  # the same
    training: pd.DataFrame  # title, seed, stage, step, loss (mean of the steps since the one before), valid_auc


def draw_gallery(results: Results, evidence: Evidence, slices: pd.DataFrame) -> list[Drawn]:
    """All figures, in the order of the page; ``slices`` is the CSV of the table of that name."""
    return [
        _ablation(results),
        Drawn(
            name="cold_warm",
            figure=compared.cold_warm_figure(slices),
            caption="AUC and UAUC on warm, cold and strictly cold rows, means over training seeds. "
            f"{_INTERVAL} Where a metric is not defined there is no dot. Numbers: tables/slices.csv. {_rows(results)}",
            kind="svg",
        ),
        _svg(
            "confusion",
            panels.confusion_figure(evidence.confusion),
            f"Confusion matrices at a cutoff of {results['cutoff']:g}: how many rows, rounded, and which share of all "
            f"rows with that true answer; the shade is the share. {_SPREAD} {_rows(results)}",
            evidence.confusion,
        ),
        _svg(
            "calibration",
            panels.calibration_figure(evidence.calibration),
            "Reliability: the share of likes against the mean score, in bins of equally many rows by score; on the "
            f"dashes scores are probabilities. Bins are each seed's own. {_SPREAD} {_rows(results)}",
            evidence.calibration,
        ),
        _strata(results, "auc_by_history", evidence.by_history, "liked items in the user's history before the row"),
        _strata(results, "auc_by_popularity", evidence.by_popularity, "training rows of the item"),
        _training(results, evidence.training),
        _cost(results),
    ]


def _svg(name: str, figure: Figure, caption: str, numbers: pd.DataFrame) -> Drawn:
    return Drawn(name=name, figure=figure, caption=caption, numbers=numbers, kind="svg")


def _ablation(results: Results) -> Drawn:
    against = results["ablation"]["against"]
    columns = ["title", "against", "metric", "change", "low", "high"]
    records = [
        (title, against, metric, *(number(found[key]) for key in ("value", "low", "high")))
        for title, metrics in results["ablation"]["changes"].items()
        for metric, found in metrics.items()
    ]
    changes = pd.DataFrame(records, columns=columns)
    caption = (
        f"AUC and UAUC of each system over those of “{against}”, minus one; of means over training seeds. {_INTERVAL} "
        f"A change is of the whole value: chance, 0.5, is not taken off before. {_rows(results)}"
    )
    return _svg("ablation", compared.ablation_figure(changes), caption, changes)


def _strata(results: Results, name: str, bins: pd.DataFrame, what: str) -> Drawn:
    rows = [] if bins.empty else bins.loc[bins["title"] == bins["title"].iloc[0], "rows"]
    caption = (
        f"AUC by {what}, in quantile bins of the test rows, the same for all systems; equal numbers share a bin. "
        f"Rows in the bins: {', '.join(f'{count:,}' for count in rows) or 'none'}. Grey: the other systems. A bin of "
        f"one class has no AUC. {_SPREAD} {_rows(results)}"
    )
    return _svg(name, panels.strata_figure(bins, what), caption, bins)


def _training(results: Results, progress: pd.DataFrame) -> Drawn:
    trained = [title for title, system in results["systems"].items() if system["is_trained"] and system["seeds"]]
    caption = (
        "Training loss and validation AUC over the optimizer steps of the stages that each system needed, in order; "
        "vertical lines: one stage gives its parts to the next. Every stage is drawn equally wide, its steps beneath; "
        "a curve that ends before was stopped early. A point of the loss is the mean of the steps since the point "
        f"before. {'Every fold has a line. ' if 'folds' in results else ''}What several systems need was trained once "
        "and is in each panel. Systems with nothing to train have no panel. "
        f"{_without('logs', [title for title in trained if title not in set(progress['title'])])}"
        f"{_left_out(results)}"
    )
    return _svg("training", panels.stages_figure(progress, results["seeds"]), caption.rstrip(), progress)


def _cost(results: Results) -> Drawn:
    costs = pd.DataFrame([_cost_of(title, system) for title, system in results["systems"].items()])
    scored = costs[costs["auc"].notna()]
    caption = (
        "AUC against the cost of training. Seconds: by the clock, of the training steps of all stages that the system "
        "needed, on whatever machine under whatever load; starting, validation, scoring and the search for settings "
        "are not in them, and a stage that several systems share counts for each. Parameters: all that one of the "
        f"stages trained. {'Both are means over folds. ' if 'folds' in results else ''}At the left edge: systems that "
        "train no stage, whatever else they fit. "
        f"{_without('logs', list(scored.loc[scored['seconds'].isna(), 'title']))}"
        f"{_without('saved parts', list(scored.loc[scored['parameters'].isna(), 'title']))}{_SPREAD} {_rows(results)}"
    )
    return _svg("cost", compared.cost_figure(scored, list(results["systems"])), caption, scored)


def _cost_of(title: str, system: Mapping[str, Any]) -> dict[str, Any]:
    auc, is_trained = system["slices"]["all"]["metrics"].get("auc", {}), system["is_trained"]
    seconds = [math.fsum(stages.values()) for stages in system["cost"]["seconds"].values() if stages]
    return {
        "title": title,
        "auc": number(auc.get("mean")),
        "auc_sd": number(auc.get("sd")),
        "seconds": (math.fsum(seconds) / len(seconds) if seconds else math.nan) if is_trained else 0.0,
        "seconds_sd": float(np.std(seconds, ddof=1)) if len(seconds) > 1 else math.nan,
        "parameters": number(system["cost"]["parameters"]) if is_trained else 0.0,
    }


def _rows(results: Results) -> str:
    """Which rows and which systems a figure is of."""
    folds = "AUC and UAUC are means over folds; rows are those of all folds together. " if "folds" in results else ""
    return f"{folds}{_left_out(results)}Sample: {results['sample'].rstrip('.')}."


def _left_out(results: Results) -> str:
    """Titles and seeds without predictions, as sentences; empty where all are there."""
    systems: dict[str, Any] = results["systems"]
    told = _without("predictions", [title for title, system in systems.items() if not system["seeds"]])
    for title, system in systems.items():
        if system["seeds"] and system["failures"]:
            told += f"“{title}” is without seed {', '.join(system['failures'])}. "
    return told


def _without(what: str, titles: list[str]) -> str:
    return f"Left out, for want of {what}: {', '.join(f'“{title}”' for title in titles)}. " if titles else ""
