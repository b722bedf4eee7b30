"""The figures of an experiment that put its systems on one axis, in the style of `rayrec.report.figures`."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from rayrec.report.figures import INK, MUTED, PAPER, SERIES, drawing, series
from rayrec.report.tables import METRIC_TITLES, SLICE_TITLES

COMPARED: Final = ("auc", "uauc")
_SLICES: Final = {"warm": (4, "o"), "cold": (2, "s"), "strict_cold": (6, "D")}  # index of the colour, marker
_MARKERS: Final = "os^Dv"  # one for each time that the colours begin again
_CHANCE: Final = 0.5
_NARROW: Final = 9.0  # an axis of costs spans at least so much from end to end
_KEY_LETTERS: Final = 120  # in a row of a legend


def ablation_figure(changes: pd.DataFrame) -> Figure:
    """Relative changes of AUC and UAUC as bars with intervals.

    ``changes`` has title, against (one title), metric, change, low, high.
    """
    titles = list(dict.fromkeys(changes["title"]))
    with drawing(10, 1.1 + 0.34 * max(3, len(titles))) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, metric in zip(panels, COMPARED, strict=True):
            own = changes[changes["metric"] == metric].set_index("title")
            for place, title in enumerate(titles):
                _change_bar(axes, place, *own.loc[title, ["change", "low", "high"]].astype(float))
            axes.axvline(0, color=MUTED, linewidth=0.9)
            axes.xaxis.set_major_formatter(lambda value, _: _percent(value, 0))
            axes.margins(x=0.18)
            axes.set_title(f"{METRIC_TITLES[metric]}, relative change")
        _systems_axis(panels, titles)
        if not titles:
            nothing(panels, "nothing to compare")
    return figure


def cold_warm_figure(slices: pd.DataFrame) -> Figure:
    """AUC and UAUC of each system in each slice, a dot and its interval; ``slices`` is the table of that name."""
    titles = list(dict.fromkeys(slices["title"]))
    known = slices[slices[list(COMPARED)].notna().any(axis=1)]
    parts = [part for part in _SLICES if part in set(known["slice"])]
    with drawing(10, 1.3 + 0.4 * max(3, len(titles))) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, metric in zip(panels, COMPARED, strict=True):
            axes.axvline(_CHANCE, color=MUTED, linewidth=0.9)
            for rank, part in enumerate(parts):
                own = known[known["slice"] == part].set_index("title").reindex(titles)
                places = np.arange(len(titles)) + 0.24 * (rank - (len(parts) - 1) / 2)
                style = _slice_style(part)
                axes.hlines(places, own[f"{metric}_low"], own[f"{metric}_high"], color=style["color"], linewidth=1.4)
                axes.plot(own[metric], places, **style)
            axes.set_title(f"{METRIC_TITLES[metric]}; the line is chance")
        _systems_axis(panels, titles)
        key(figure, [(_slice_label(known, part), _slice_style(part)) for part in parts])
        if not parts:
            nothing(panels, "nothing to compare")
    return figure


def cost_figure(costs: pd.DataFrame, order: Sequence[str]) -> Figure:
    """AUC against training seconds and against trained parameters, on log axes that begin with what trained nothing.

    Args:
        costs: one row a title: title, auc, auc_sd, seconds, seconds_sd, parameters; NaN for what is not known.
        order: all titles of the experiment, which gives the colours.
    """
    styles = {title: _style(index) for index, title in enumerate(order)}
    entries = [(shortened(title, 50), styles[title]) for title in costs["title"]]
    columns = _key_columns([label for label, _ in entries])
    with drawing(10, 3.8 + 0.2 * -(-len(entries) // columns)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, column in zip(panels, ("seconds", "parameters"), strict=True):
            edge = _cost_axis(axes, costs[column].to_numpy(dtype=np.float64))
            places = costs[column].replace(0, edge)
            for x, row in zip(places, costs.to_dict("records"), strict=True):
                across = _finite(row["seconds_sd"]) if column == "seconds" else None
                axes.errorbar(x, row["auc"], _finite(row["auc_sd"]), across, **styles[row["title"]], elinewidth=1.0)
        panels[0].set(xlabel="training seconds, all stages that the system needed", ylabel="AUC")
        panels[1].set(xlabel="parameters trained")
        key(figure, entries, columns)
        if costs.empty:
            nothing(panels, "nothing scored")
    return figure


def shortened(title: str, width: int, lines: int = 1) -> str:
    """A title in lines of this width; what does not fit is cut."""
    return "\n".join(textwrap.wrap(title, width, max_lines=lines, placeholder="…"))


def key(figure: Figure, entries: Sequence[tuple[str, Mapping[str, Any]]], columns: int = 6) -> None:
    """A legend above the panels, of labels and the styles of their lines."""
    if entries:
        labels, styles = zip(*entries, strict=True)
        lines = [Line2D([], [], **style) for style in styles]
        figure.legend(lines, labels, loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.8)


def nothing(panels: Sequence[Axes], text: str) -> None:
    """Show but a few words that say why there is nothing to show."""
    for axes in panels:
        axes.clear()
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, text, transform=axes.transAxes, color=MUTED, ha="center", va="center")


def _systems_axis(panels: Sequence[Axes], titles: Sequence[str]) -> None:
    """The titles from top to bottom."""
    panels[0].set_yticks(range(len(titles)), [shortened(title, 28, 2) for title in titles], color=INK)
    panels[0].set_ylim(len(titles) - 0.4, -0.6)
    for axes in panels:
        axes.grid(axis="y", visible=False)


def _change_bar(axes: Axes, place: int, change: float, low: float, high: float) -> None:
    if not np.isfinite(change):
        return
    axes.barh(place, change, 0.62, color=series(2 if change >= 0 else 4), linewidth=0)
    axes.plot([low, high], [place, place], color=INK, linewidth=1.0)
    ends = [0.0, change, *(end for end in (low, high) if np.isfinite(end))]
    at, side, align = (max(ends), 4, "left") if change >= 0 else (min(ends), -4, "right")
    text = _percent(change, 1)
    axes.annotate(text, (at, place), (side, 0), textcoords="offset points", fontsize=8, ha=align, va="center")


def _percent(value: float, digits: int) -> str:
    return f"{100 * value:+.{digits}f}%".replace("-", "−") if value else "0%"


def _slice_style(part: str) -> dict[str, Any]:
    colour, marker = _SLICES[part]
    return {"color": series(colour), "marker": marker, "markersize": 4.5, "linestyle": ""}


def _slice_label(slices: pd.DataFrame, part: str) -> str:
    rows = slices.loc[slices["slice"] == part, "rows"].max()
    return f"{SLICE_TITLES[part]}, {rows:,.0f} rows"


def _finite(value: float) -> float | None:
    """None for what matplotlib should not draw."""
    return value if np.isfinite(value) else None


def _key_columns(labels: Sequence[str]) -> int:
    """As many columns of a legend as have room beside each other."""
    lengths = np.array([len(label) for label in labels], dtype=np.int64)

    def width(columns: int) -> int:
        return sum(6 + int(column.max(initial=0)) for column in np.array_split(lengths, columns))

    return next((columns for columns in (4, 3, 2) if width(columns) <= _KEY_LETTERS), 1)


def _style(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th system; no two of the first 35 are alike."""
    marker = _MARKERS[index // len(SERIES) % len(_MARKERS)]
    return {"color": series(index), "marker": marker, "markersize": 6.5, "markeredgecolor": PAPER, "linestyle": ""}


def _cost_axis(axes: Axes, values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """A log axis for the positive values; returns the place at its left edge that stands for 0."""
    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    room = max(1.3, math.pow(high / low, 0.06)) if high / low > _NARROW else math.sqrt(_NARROW * low / high)
    left, right = low / room, high * room
    part = math.pow(right / left, 0.07)
    edge = left / math.pow(part, 1.5)
    ticks = [tick for tick in _round_numbers(left, right) if len(positive)]
    labels = [EngFormatter(sep="").format_eng(tick) for tick in ticks]
    if (values == 0).any():
        axes.axvline(edge * part, color=MUTED, linewidth=0.9, dashes=(2, 3))
        ticks, labels = [edge, *ticks], ["nothing\ntrained", *labels]
    axes.set(xscale="log", xlim=(edge / part, right))
    axes.set_xticks(ticks, labels)
    axes.set_xticks([], minor=True)
    return edge


def _round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``; where these are few, three times or twice and five times as much, too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        inside = [number for number in found if low <= number <= high]
        if len(inside) >= 3:
            break
    return inside
