"""Training curves: loss and validation metrics over the optimizer steps of stages."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayrec.report.figures import INK, MUTED, drawing
from rayrec.report.tables import number, plain
from rayrec.stages import Metric

_FEW: Final = 40  # evaluations of a curve that still get a dot each
_LIKES: Final = (Metric.AUC, Metric.UAUC)


def progress_rows(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """The lines of a ``progress.jsonl`` as numbers, in the order of ``step``; NaN for whatever a line does not tell."""
    rows = pd.DataFrame({key: np.array([number(line.get(key)) for line in lines]) for key in columns})
    kept: pd.DataFrame = rows[np.isfinite(rows["step"])].sort_values("step", kind="stable", ignore_index=True)
    return kept


def training_figure(
    progress: Mapping[str, Sequence[Mapping[str, Any]]], judged_by: tuple[Metric, Metric] = _LIKES
) -> Figure:
    """Training loss, and two validation metrics (line, dashes), over the steps of all stages laid end to end."""
    with drawing(10, 4.6) as figure:
        losses, valid = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        start, spans = 0.0, []
        for stage, lines in progress.items():
            rows = progress_rows(lines, ("step", "loss", *(metric.value for metric in judged_by)))
            if rows.empty:
                continue
            _stage_curves(losses, valid, rows, start, judged_by)
            spans.append((stage, start, start + float(rows["step"].max())))
            start = spans[-1][2]
        _mark_stages((losses, valid), spans)
        losses.set_title("Training loss", pad=8 + 11 * _levels(spans)[1])
        valid.set_title("Validation {} (line) and {} (dashes)".format(*(metric.shown for metric in judged_by)))
        valid.set_xlabel("optimizer steps, all stages laid end to end")
        valid.xaxis.set_major_formatter(lambda value, _: plain(value))
    return figure


def draw_evaluations(axes: Axes, steps: pd.Series, values: pd.Series, line: str = "-", colour: str = INK) -> None:
    """What is finite of ``values``, with dots where they are few."""
    seen = np.isfinite(values)
    marker = "o" if seen.sum() <= _FEW else ""
    axes.plot(steps[seen], values[seen], line, color=colour, marker=marker, markersize=2.8, linewidth=1.2)


def _stage_curves(
    losses: Axes, valid: Axes, rows: pd.DataFrame, start: float, judged_by: tuple[Metric, Metric]
) -> None:
    trained = rows[np.isfinite(rows["loss"])]
    if len(trained):
        steps = trained["step"] + start
        smooth = trained["loss"].ewm(span=max(5, len(trained) // 20)).mean()
        losses.plot(steps, trained["loss"], color=MUTED, linewidth=0.6, alpha=0.45)
        losses.plot(steps, smooth, color=INK)
    for metric, line in zip(judged_by, ("-", "--"), strict=True):
        draw_evaluations(valid, rows["step"] + start, rows[metric.value], line)


def _mark_stages(panels: Sequence[Axes], spans: Sequence[tuple[str, float, float]]) -> None:
    if not spans:
        for axes in panels:
            axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, color=MUTED, ha="center", va="center")
        return
    panels[0].set_xlim(0, spans[-1][2] * 1.005)
    for (stage, start, _), level in zip(spans, _levels(spans)[0], strict=True):
        for axes in panels:
            axes.axvline(start, color=MUTED, linewidth=0.9)
        panels[0].annotate(
            stage, (start, 1), (3, 3 + 11 * level), ("data", "axes fraction"), "offset points", color=MUTED, fontsize=8
        )


def _levels(spans: Sequence[tuple[str, float, float]]) -> tuple[list[int], int]:
    """The height of each stage's name, so that names of short stages do not run into each other; and how many."""
    ends: list[float] = []
    levels = []
    for stage, start, _ in spans:
        left = start / spans[-1][2]
        level = next((place for place, end in enumerate(ends) if end <= left), len(ends))
        ends[level:] = [left + 0.012 * len(stage)]  # a higher name also closes what it hangs over
        levels.append(level)
    return levels, max(levels, default=-1) + 1
