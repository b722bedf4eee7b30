"""The figures of the report, through matplotlib's object API: no pyplot, no global state, the same bytes each time.

Each figure is drawn once, in the light colours, and written twice: as PNG or SVG for a paper, and as SVG for the page,
where the colours become CSS variables, so that the figure follows the page into dark mode.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.metrics import roc_curve

from rayrec.metrics import SLICES
from rayrec.metrics.pointwise import ECE_BINS, ece_bin
from rayrec.report.tables import DASH, METRIC_TITLES, SLICE_TITLES, SystemMetrics, count, estimate

# Okabe & Ito's colours, told apart with any colour vision, https://jfly.uni-koeln.de/color/; second: on a dark page.
# The grey comes first because the first system is the floor.
SERIES: Final = (
    ("#6f7680", "#9aa3af"),
    ("#e69f00", "#f0b429"),
    ("#0072b2", "#4aa8e0"),
    ("#009e73", "#2cc79b"),
    ("#d55e00", "#f0803c"),
    ("#cc79a7", "#e29cc4"),
    ("#56b4e9", "#8bcdf2"),
)
INK, MUTED, GRID, PAPER = "#1d2127", "#68707c", "#e2e4e9", "#ffffff"
_STYLE: Final[Any] = {  # Any: newer matplotlib types its keys one by one, older does not
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "text.parse_math": False,  # a title with a dollar sign is a title
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # real text: it takes the page's font and can be searched
    "svg.hashsalt": "rayrec",
    "path.simplify": True,
}
_CURVE_POINTS: Final = 400
_CHANCE: Final = 0.5


def slices_figure(metrics: Mapping[str, SystemMetrics], titles: Mapping[str, str]) -> Figure:
    """AUC and UAUC of each system on each slice as bars from chance (0.5), with 95% intervals."""
    with drawing(10, 3.5) as figure:
        width = 0.8 / max(1, len(titles))
        for axes, metric in zip(figure.subplots(1, 2), ("auc", "uauc"), strict=True):
            for index, system in enumerate(titles):
                offset = (index - (len(titles) - 1) / 2) * width
                for place, part in enumerate(SLICES):
                    _bar(axes, place + offset, width * 0.86, estimate(metrics, system, part, metric), series(index))
            axes.axhline(_CHANCE, color=MUTED, linewidth=0.9)
            axes.set_xticks(range(len(SLICES)), [_slice_label(metrics, part) for part in SLICES])
            axes.set_xlim(-0.5, len(SLICES) - 0.5)
            axes.grid(axis="x", visible=False)
            axes.set_title(f"{METRIC_TITLES[metric]}, bars start at chance")
        _legend(figure, titles)
    return figure


def curves_figure(predictions: Mapping[str, pd.DataFrame], titles: Mapping[str, str]) -> Figure:
    """ROC curves, reliability (share of likes by score, in the bins of the ECE) and the spread of the scores."""
    with drawing(10, 3.9) as figure:
        roc, reliability, spread = figure.subplots(1, 3)
        for axes in (roc, reliability):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, dashes=(3, 3))
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), box_aspect=1)
        spread.set(xlim=(-0.01, 1.01), box_aspect=1)
        for index, system in enumerate(titles):
            frame = predictions.get(system)
            if frame is None or frame.empty:
                continue
            label, score = frame["label"].to_numpy(), frame["score"].to_numpy(dtype=np.float64)
            _roc(roc, label, score, series(index))
            _reliability(reliability, spread, label, score, series(index))
        roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
        reliability.set(title="Calibration", xlabel="mean score in bin", ylabel="share of likes in bin")
        spread.set(title="Scores given", xlabel="score", ylabel="share of rows")
        _legend(figure, titles)
    return figure


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A new figure in the report's style, its size in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def series(index: int) -> str:
    """The colour of the index-th system, everywhere in the report."""
    return SERIES[index % len(SERIES)][0]


def write_png(figure: Figure, path: Path) -> None:
    """Writes the figure on white, 160 dots per inch."""
    with mpl.rc_context(_STYLE):
        figure.savefig(path, dpi=160, facecolor=PAPER, metadata={"Software": None})


def svg_text(figure: Figure, *, transparent: bool) -> str:
    """The figure as the content of an SVG file, on white unless ``transparent``."""
    buffer, ground = io.StringIO(), {"transparent": True} if transparent else {"facecolor": PAPER}
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **ground)
    return buffer.getvalue()


def inline_svg(text: str, name: str, description: str) -> str:
    """An SVG file as an ``<svg>`` element: no prologue, no namespaces to fetch, ids made unique by ``name``."""
    view = re.search(r'viewBox="[^"]*"', text)
    body = re.sub(r"^.*?<svg[^>]*>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    body = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", body)
    for colour, variable in _css_variables().items():
        body = re.sub(rf"(?<=: ){colour}(?=[;\"])", f"var({variable})", body)
    return f'<svg {view.group() if view else ""} role="img" aria-label="{description}">{body.strip()}'


def css_colours() -> tuple[dict[str, str], dict[str, str]]:
    """CSS variable -> colour of each system, on a light and on a dark page."""
    return tuple({f"--series-{i}": pair[mode] for i, pair in enumerate(SERIES)} for mode in (0, 1))  # type: ignore[return-value]


def _css_variables() -> dict[str, str]:
    fixed = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--page"}
    return fixed | {pair[0]: f"--series-{index}" for index, pair in enumerate(SERIES)}


def _legend(figure: Figure, titles: Mapping[str, str]) -> None:
    handles = [Line2D([], [], color=series(index), linewidth=4) for index in range(len(titles))]
    figure.legend(handles, list(titles.values()), loc="outside upper left", ncols=7, handlelength=1, columnspacing=1.6)


def _bar(axes: Axes, x: float, width: float, value: Sequence[float], colour: str) -> None:
    middle, low, high = value
    if not np.isfinite(middle):
        axes.text(x, _CHANCE, DASH, color=MUTED, ha="center", va="bottom")
        return
    axes.bar(x, middle - _CHANCE, width, bottom=_CHANCE, color=colour, linewidth=0)
    if np.isfinite(low) and np.isfinite(high):
        axes.plot([x, x], [low, high], color=INK, linewidth=1.0, solid_capstyle="butt")


def _slice_label(metrics: Mapping[str, SystemMetrics], part: str) -> str:
    rows = max((count(metrics, system, part, "rows") for system in metrics), default=0)
    return f"{SLICE_TITLES[part]}\n{rows:,} rows"


def _roc(axes: Axes, label: np.ndarray[Any, Any], score: np.ndarray[Any, Any], colour: str) -> None:
    if len(np.unique(label)) < 2:
        return
    false, true, _ = roc_curve(label, score)
    kept = np.unique(np.linspace(0, len(false) - 1, min(len(false), _CURVE_POINTS)).astype(int))
    axes.plot(false[kept], true[kept], color=colour)


def _reliability(
    axes: Axes, spread: Axes, label: np.ndarray[Any, Any], score: np.ndarray[Any, Any], colour: str
) -> None:
    bins = ece_bin(score)
    rows = np.bincount(bins, minlength=ECE_BINS)
    used = rows > 0
    mean = np.bincount(bins, score, minlength=ECE_BINS)[used] / rows[used]
    share = np.bincount(bins, label, minlength=ECE_BINS)[used] / rows[used]
    axes.plot(mean, share, color=colour, linewidth=1.0)
    axes.scatter(mean, share, s=3 + 140 * rows[used] / rows.sum(), color=colour, linewidths=0)  # area: rows in the bin
    spread.stairs(rows / rows.sum(), np.linspace(0, 1, ECE_BINS + 1), color=colour, linewidth=1.3)
