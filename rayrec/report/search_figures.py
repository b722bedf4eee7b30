"""The figures of a hyperparameter search's report, in the style of `rayrec.report.figures`.

Where trials are compared, the best one is blue.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rayrec.report.figures import GRID, INK, MUTED, PAPER, drawing, series
from rayrec.report.scales import Floats, Mode, Scale, scale, short_names, span
from rayrec.report.tables import number, plain

BEST, FAILED = series(2), series(4)
_RAMP: Final = LinearSegmentedColormap.from_list("value", ["#d98e04", "#8e949c", "#2583c4"])  # seen on white and black
_STEPS_OF_RAMP: Final = 48
_FEW: Final = 40  # evaluations of a curve that still get a dot each


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the trials compare, in their order: a failed trial's value does not count."""

    values: Floats  # NaN where none counts
    so_far: Floats  # best of this trial and those before it
    order: tuple[int, ...]  # positions, best first; equal ones and those without a value in their order
    best: int | None  # position


def standing(trials: pd.DataFrame, mode: Mode) -> Standing:
    """Compares the trials by their values."""
    values = np.array([number(value) for value in trials["value"]], dtype=np.float64)
    values[~np.isfinite(values) | (trials["status"] == "failed").to_numpy(dtype=bool)] = np.nan
    running = np.fmax if mode == "max" else np.fmin
    order = np.argsort(-values if mode == "max" else values, kind="stable")  # NaN comes last
    best = int(order[0]) if len(order) and np.isfinite(values[order[0]]) else None
    return Standing(
        values=values, so_far=running.accumulate(values), order=tuple(int(place) for place in order), best=best
    )


def history_figure(trials: pd.DataFrame, ranks: Standing, metric: str, mode: Mode) -> Figure:
    """Each trial's value, and the best of it and all before it."""
    with drawing(10, 3.6) as figure:
        axes = figure.subplots()
        x, values = trials["trial"].to_numpy(dtype=np.float64), ranks.values
        stopped = (trials["status"] == "stopped").to_numpy(dtype=bool)
        low, high = span(values, mode)
        shown = np.clip(values, low, high)
        axes.plot(x, ranks.so_far, color=BEST, drawstyle="steps-post")
        dots: dict[str, Any] = {"color": MUTED, "linestyle": "", "marker": "o", "markersize": 4.5}
        none, beyond = ~np.isfinite(values), shown != values
        for chosen, fill in ((~stopped, MUTED), (stopped, PAPER)):
            axes.plot(x[chosen & ~beyond], shown[chosen & ~beyond], **dots, markerfacecolor=fill)
            edge = dots | {"marker": "v" if mode == "max" else "^"}
            axes.plot(x[chosen & beyond], shown[chosen & beyond], **edge, markerfacecolor=fill)
        axes.plot(x[none], np.full(none.sum(), 0.035), transform=axes.get_xaxis_transform(), **_CROSS)
        if ranks.best is not None:
            axes.plot(x[ranks.best], values[ranks.best], "o", color=BEST, markersize=7)
            pad = (high - low or abs(high) or 1.0) * 0.08
            axes.set_ylim(low - (2 if none.any() else 1) * pad, high + pad)
        else:
            axes.set_yticks([])
        _trial_axis(axes, x)
        axes.set_title(f"{metric} of each trial, and the best so far")
        _key(
            figure,
            ("best so far", {"color": BEST}),
            ("complete", dots),
            ("stopped early", {**dots, "markerfacecolor": PAPER}),
            ("failed or without a value", _CROSS),
        )
    return figure


def learning_figure(
    trials: pd.DataFrame, evaluations: pd.DataFrame, ranks: Standing, metric: str, mode: Mode
) -> Figure:
    """Every trial's evaluations over its optimizer steps."""
    with drawing(10, 4.0) as figure:
        axes = figure.subplots()
        seen = _reported(evaluations)
        groups = {trial: rows.sort_values("step", kind="stable") for trial, rows in seen.groupby("trial")}
        places = [place for place in reversed(ranks.order) if place != ranks.best]
        for place in [*places, *([] if ranks.best is None else [ranks.best])]:  # the best above all others
            rows = groups.get(trials["trial"].iloc[place])
            if rows is None:
                continue
            style = _BEST_LINE if place == ranks.best else _LINES[trials["status"].iloc[place]]
            marker = "o" if len(rows) <= _FEW else ""
            value = rows["value"].to_numpy(dtype=np.float64)
            axes.plot(rows["step"].to_numpy(dtype=np.float64), value, marker=marker, markersize=2.6, **style)
        if groups:
            edges = (*span(worst_reported(evaluations, mode), mode), seen["value"].min(), seen["value"].max())
            low, high = (edges[0], edges[3]) if mode == "max" else (edges[2], edges[1])
            pad = (high - low or abs(high) or 1.0) * 0.06
            axes.set_ylim(low - pad, high + pad)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(lambda value, _: plain(value))
        else:
            _nothing(axes)
        axes.set_title(f"{metric} while training")
        axes.set_xlabel("optimizer steps of the trial")
        _key(
            figure,
            ("best trial", _BEST_LINE),
            ("complete", _LINES["complete"]),
            ("stopped early", _LINES["stopped"]),
            ("failed", _LINES["failed"]),
        )
    return figure


def worst_reported(evaluations: pd.DataFrame, mode: Mode) -> Floats:
    """Each trial's worst evaluation: where the axis may end, since a curve's own beginning must not be cut off."""
    values = _reported(evaluations).groupby("trial")["value"]
    return (values.min() if mode == "max" else values.max()).to_numpy(dtype=np.float64)


def parallel_figure(trials: pd.DataFrame, space: Mapping[str, str], ranks: Standing, metric: str, mode: Mode) -> Figure:
    """Each trial as a line through its parameters to its value, coloured by the value."""
    names = short_names(list(space))
    scales = [scale(trials[path].tolist(), words) for path, words in space.items()]
    low, high = span(ranks.values, mode)
    shown = np.clip(ranks.values, low, high)
    scales.append(scale(shown.tolist(), metric))
    with drawing(10, 4.6) as figure:
        axes = figure.subplots()
        axes.set(xlim=(-0.45, len(space) + 0.45), ylim=(-0.04, 1.04))
        axes.axis("off")
        x = np.arange(len(scales))
        places = np.array([each.places for each in scales])
        good = places[-1] if mode == "max" else 1 - places[-1]
        for place in reversed(ranks.order):
            style = _LINES["failed"]
            if np.isfinite(good[place]):
                style = {"color": _RAMP(good[place]), "linewidth": 1.1, "alpha": 0.8}
            axes.plot(x, places[:, place], **(_BEST_LINE if place == ranks.best else style), solid_joinstyle="round")
        for at, (each, name) in enumerate(zip(scales, [*names.values(), metric], strict=True)):
            title = _wrapped(name) + ("\n(log)" if each.is_log else "")
            _upright(axes, at, each, title, is_wide=len(space) <= 5, is_last=at == len(space))
        _coloured_axis(axes, len(space), mode)
        _key(
            figure,
            ("best trial", _BEST_LINE),
            ("better", {"color": _RAMP(0.9)}),
            ("worse", {"color": _RAMP(0.0)}),
            ("failed or without a value", _LINES["failed"]),
        )
    return figure


def importance_figure(importance: Mapping[str, float]) -> Figure:
    """Each parameter's share, largest at the top."""
    ordered = sorted(importance.items(), key=lambda pair: (pair[1], pair[0]))  # bars are stacked upwards
    with drawing(10, 0.9 + 0.32 * len(ordered)) as figure:
        axes = figure.subplots()
        for place, (_, share) in enumerate(ordered):
            axes.barh(place, share, 0.62, color=BEST, linewidth=0)
            axes.annotate(f"{100 * share:.0f}%", (share, place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(ordered)), [_cut(path, 60) for path, _ in ordered])
        axes.set_xlim(0, 1.12 * (max(importance.values()) or 1))
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        axes.grid(axis="y", visible=False)
        axes.set_title("Share of the differences in value")
    return figure


def savings_figure(trials: pd.DataFrame) -> Figure:
    """The steps each trial trained, before the steps it would have trained."""
    with drawing(10, 3.0) as figure:
        axes = figure.subplots()
        x = trials["trial"].to_numpy(dtype=np.float64)
        axes.bar(x, np.nan_to_num(trials["planned_steps"].to_numpy(dtype=np.float64)), 0.8, color=GRID, linewidth=0)
        steps = np.nan_to_num(trials["steps"].to_numpy(dtype=np.float64))
        for status, colour in _BARS.items():
            chosen = (trials["status"] == status).to_numpy(dtype=bool)
            axes.bar(x[chosen], steps[chosen], 0.8, color=colour, linewidth=0)
        axes.yaxis.set_major_formatter(lambda value, _: plain(value))
        axes.grid(axis="x", visible=False)
        _trial_axis(axes, x)
        axes.set_title("Optimizer steps trained, of those planned")
        patches = [(label, {"color": colour, "linewidth": 5}) for label, colour in _BARS.items()]
        _key(figure, *patches, ("planned", {"color": GRID, "linewidth": 5}))
    return figure


_LINES: Final[Mapping[str, Mapping[str, Any]]] = {
    "complete": {"color": MUTED, "linewidth": 1.1, "alpha": 0.8},
    "stopped": {"color": MUTED, "linewidth": 0.9, "alpha": 0.5},
    "interrupted": {"color": MUTED, "linewidth": 0.9, "alpha": 0.5, "linestyle": ":"},
    "failed": {"color": FAILED, "linewidth": 0.9, "alpha": 0.8, "linestyle": "--"},
}
_BEST_LINE: Final[Mapping[str, Any]] = {"color": BEST, "linewidth": 2.8}
_CROSS: Final[Mapping[str, Any]] = {"color": FAILED, "linestyle": "", "marker": "x", "markersize": 6, "clip_on": False}
_BARS: Final = {"complete": series(0), "stopped": series(3), "interrupted": MUTED, "failed": FAILED}


def _reported(evaluations: pd.DataFrame) -> pd.DataFrame:
    values = np.array([number(value) for value in evaluations["value"]], dtype=np.float64)
    seen: pd.DataFrame = evaluations.assign(value=values)[np.isfinite(values)]
    return seen


def _key(figure: Figure, *entries: tuple[str, Mapping[str, Any]]) -> None:
    handles = [Line2D([], [], **{key: item for key, item in style.items() if key != "clip_on"}) for _, style in entries]
    labels = [label for label, _ in entries]
    figure.legend(handles, labels, loc="outside upper left", ncols=7, handlelength=1.4, columnspacing=1.6)


def _trial_axis(axes: Axes, x: Floats) -> None:
    if len(x):
        axes.set_xlim(x.min() - 0.7, x.max() + 0.7)
    else:
        _nothing(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("trial")


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, color=MUTED, ha="center", va="center")


def _upright(axes: Axes, at: int, each: Scale, name: str, *, is_wide: bool, is_last: bool) -> None:
    axes.plot([at, at], [0, 1], color=MUTED, linewidth=0.9)
    box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    side = 1 if is_last else -1  # beyond the last axis there are no lines
    for place, label in each.ticks:
        axes.plot([at, at + 0.02 * side], [place, place], color=MUTED, linewidth=0.9)
        axes.annotate(
            _cut(label, 18 if is_wide else 10),
            (at, place),
            (5 * side, 0),
            textcoords="offset points",
            ha="left" if is_last else "right",
            va="center",
            fontsize=7.5,
            color=INK,
            bbox=box,
        )
    axes.annotate(name, (at, 1), (0, 9), textcoords="offset points", ha="center", va="bottom", fontsize=8, color=INK)


def _coloured_axis(axes: Axes, at: int, mode: Mode) -> None:
    edges = np.linspace(0, 1, _STEPS_OF_RAMP + 1)
    pieces = [[(at, low), (at, high)] for low, high in itertools.pairwise(edges)]
    colours = _RAMP(edges[:-1] if mode == "max" else 1 - edges[1:])
    axes.add_collection(LineCollection(pieces, colors=colours, linewidths=4, zorder=4))


def _wrapped(name: str, width: int = 15) -> str:
    """Broken after dots and underscores, for the axes stand close together."""
    lines = [""]
    for part in name.replace("_", "_\0").replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += _cut(part, width)
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
