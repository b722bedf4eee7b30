"""The figures of an experiment that give each system a panel of its own: nothing overlaps, however many there are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rayrec.report.experiment_figures import key, nothing, shortened
from rayrec.report.figures import INK, MUTED, drawing, series
from rayrec.report.tables import plain
from rayrec.report.training_curves import draw_evaluations

_COLUMNS: Final = 4
_TRAINED_COLUMNS: Final = 3  # of the training curves, which need more room
_OWN: Final = series(2)
_CHANCE: Final = 0.5
_SEEDS: Final = (2, 4, 3, 5, 1, 6, 0)  # indices of colours


def confusion_figure(cells: pd.DataFrame) -> Figure:
    """A confusion matrix a title; ``cells`` has title, label, predicted, count, share, share_sd."""
    groups = _by_title(cells)
    with _panels(list(groups), 1.5) as (figure, panels):
        for axes, own in zip(panels, groups.values(), strict=True):
            for cell in own.to_dict("records"):
                x, y = float(cell["predicted"] == "like"), float(cell["label"] == "like")
                shade = 0.06 + 0.5 * float(np.nan_to_num(cell["share"]))
                axes.add_patch(Rectangle((x, y), 1, 1, facecolor=_OWN, alpha=shade, linewidth=0))
                share = _share(cell["share"], cell["share_sd"])
                axes.text(x + 0.5, y + 0.36, f"{cell['count']:,.0f}", ha="center", va="center", fontsize=9)
                axes.text(x + 0.5, y + 0.7, share, ha="center", va="center", fontsize=7.5)
            axes.set(xlim=(0, 2), ylim=(2, 0), xticks=[0.5, 1.5], yticks=[0.5, 1.5])
            axes.set_xticklabels(["dislike", "like"])
            axes.set_yticklabels(["dislike", "like"], rotation=90, va="center")
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
        _axis_names(figure, "predicted", "true")
    return figure


def calibration_figure(bins: pd.DataFrame) -> Figure:
    """A reliability curve a title; ``bins`` has title, score, share, share_sd, in the order of the bins."""
    groups = _by_title(bins)
    with _panels(list(groups), 2.35, shared=True) as (figure, panels):
        for axes, own in zip(panels, groups.values(), strict=True):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, dashes=(3, 3))
            _curve(axes, own["score"], own["share"], own["share_sd"])
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), box_aspect=1)
        _axis_names(figure, "mean score in bin", "share of likes in bin")
    return figure


def strata_figure(bins: pd.DataFrame, what: str) -> Figure:
    """AUC by bin, a panel a title with the others in grey; ``bins`` has title, bin, low, high, auc, auc_sd."""
    groups = _by_title(bins)
    with _panels(list(groups), 1.75, shared=True) as (figure, panels):
        for axes, (title, own) in zip(panels, groups.items(), strict=True):
            for other in groups:
                if other != title:
                    axes.plot(groups[other]["bin"], groups[other]["auc"], color=MUTED, linewidth=0.7, alpha=0.35)
            axes.axhline(_CHANCE, color=MUTED, linewidth=0.9, dashes=(3, 3))
            _curve(axes, own["bin"], own["auc"], own["auc_sd"])
            labels = [_range(low, high) for low, high in zip(own["low"], own["high"], strict=True)]
            axes.set_xticks(own["bin"], labels, fontsize=7)
            axes.set_xlim(-0.4, own["bin"].max() + 0.4)
        _axis_names(figure, what, "AUC")
    return figure


def stages_figure(progress: pd.DataFrame, seeds: Sequence[int]) -> Figure:
    """Loss above and validation AUC below, a panel a title and a line a seed, over its stages in the order of training.

    Every stage is as wide as the others, from its step 0 to the last step of the seed that trained longest.

    Args:
        progress: title, seed, stage, step, loss, valid_auc; with folds also fold, which has a line of its own.
        seeds: all training seeds, which give the colours.
    """
    colours = {seed: series(_SEEDS[index % len(_SEEDS)]) for index, seed in enumerate(seeds)}
    groups = _by_title(progress)
    rows = max(1, -(-len(groups) // _TRAINED_COLUMNS))
    with drawing(10, 0.5 + 2.5 * rows) as figure:
        grid = figure.subplots(2 * rows, _TRAINED_COLUMNS, squeeze=False, height_ratios=(3, 2) * rows)
        pairs = [(grid[2 * row, column], grid[2 * row + 1, column]) for row, column in np.ndindex(rows, len(grid[0]))]
        for (losses, valid), (title, own) in zip(pairs, groups.items(), strict=False):
            _stages(losses, valid, own, colours)
            losses.set_title(shortened(title, 36, 2), fontsize=8.5)
        for row in range(rows if groups else 0):
            grid[2 * row, 0].set_ylabel("loss")
            grid[2 * row + 1, 0].set_ylabel("valid. AUC")
        _only(list(grid.ravel()), {axes for pair in pairs[: len(groups)] for axes in pair}, "nothing trained")
        if groups:
            key(figure, [(f"seed {seed}", {"color": colours[seed]}) for seed in seeds])
    return figure


def _stages(losses: Axes, valid: Axes, own: pd.DataFrame, colours: Mapping[int, str]) -> None:
    ends = own.groupby("stage", sort=False)["step"].max()
    lines = ["seed", "fold"] if "fold" in own else ["seed"]
    for start, (stage, end) in enumerate(ends.items()):
        for (seed, *_), rows in own[own["stage"] == stage].groupby(lines):
            at, shown = start + rows["step"] / end, rows["loss"].notna()
            losses.plot(at[shown], rows["loss"][shown], color=colours[seed], linewidth=1.0)
            draw_evaluations(valid, at, rows["valid_auc"], colour=colours[seed])
        for axes in (losses, valid) if start else ():
            axes.axvline(start, color=INK, linewidth=0.8)
    for axes in (losses, valid):
        axes.set_xlim(0, len(ends))
        axes.grid(axis="x", visible=False)
    losses.set_xticks([])
    names = [f"{stage}\n{plain(end)} steps" for stage, end in ends.items()]
    valid.set_xticks(np.arange(len(ends)) + 0.5, names, fontsize=7)


@contextmanager
def _panels(titles: Sequence[str], height: float, *, shared: bool = False) -> Iterator[tuple[Figure, list[Axes]]]:
    """A titled panel each, ``height`` inches high, ``_COLUMNS`` in a row; ``shared``: all have the same axes."""
    rows = max(1, -(-len(titles) // _COLUMNS))
    with drawing(10, 0.35 + height * rows) as figure:
        grid = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=shared, sharey=shared).ravel()
        panels = list(grid[: len(titles)])
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(shortened(title, 28, 2), fontsize=8.5)
        for axes in panels[-_COLUMNS:]:
            axes.tick_params(labelbottom=True)  # also where the panel beneath is empty
        yield figure, panels
        _only(list(grid), set(panels), "nothing scored")


def _only(grid: Sequence[Axes], used: set[Axes], text: str) -> None:
    """Hide the rest of the grid; where nothing is used, say so."""
    for axes in grid:
        axes.set_visible(axes in used)
    if not used:
        grid[0].set_visible(True)
        nothing(grid[:1], text)


def _by_title(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(title): rows for title, rows in frame.groupby("title", sort=False)}


def _curve(axes: Axes, x: pd.Series, y: pd.Series, spread: pd.Series) -> None:
    bars = spread if spread.notna().any() else None
    axes.errorbar(x, y, yerr=bars, color=_OWN, marker="o", markersize=3, linewidth=1.2, elinewidth=1.0)


def _axis_names(figure: Figure, x: str, y: str) -> None:
    figure.supxlabel(x, fontsize=9, color=MUTED)
    figure.supylabel(y, fontsize=9, color=MUTED)


def _share(share: float, spread: float) -> str:
    if not np.isfinite(share):
        return ""
    return f"{100 * share:.1f}" + (f" ± {100 * spread:.1f}%" if np.isfinite(spread) else "%")


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}\nto {high:,}"
