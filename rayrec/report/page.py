"""The report: one HTML file that needs nothing but itself, its figures as PNG or SVG, its tables as CSV."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rayrec.report import figures, tables
from rayrec.report.tables import SystemMetrics, Table
from rayrec.report.training_curves import training_figure


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the page shows. Whatever is empty or missing is shown as a dash or left out."""

    title: str
    config_yaml: str
    versions: Mapping[str, str]  # package -> version
    manifest: Mapping[str, Any]  # of the prepared data; its "steps" and "splits" become tables of their own
    metrics: Mapping[str, SystemMetrics]  # system -> what `rayrec.metrics.evaluate_slices` returns
    titles: Mapping[str, str]  # system -> display title; gives the order, and the first is the floor
    predictions: Mapping[str, pd.DataFrame]  # system -> rows with PREDICTIONS_SCHEMA's columns
    progress: Mapping[str, Sequence[Mapping[str, Any]]]  # stage -> rows of progress.jsonl
    examples: Sequence[Mapping[str, Any]]  # prompt, label, scores (system -> probability), maybe title
    sample: str  # which rows were scored, a sentence: it is part of every caption
    notes: Sequence[str]  # limits a reader must know


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure of the page and its twin beside it, ``figures/{name}.png``."""

    name: str
    figure: Figure
    caption: str
    numbers: pd.DataFrame | None = None  # all that it shows, ``tables/{name}.csv``; None: another table holds it
    kind: Literal["png", "svg"] = "png"  # of the twin

    @property
    def file(self) -> str:
        return f"figures/{self.name}.{self.kind}"

    def write(self, folder: Path) -> None:
        """Writes the twin and the numbers below ``folder``."""
        if self.kind == "png":
            figures.write_png(self.figure, folder / self.file)
        else:
            (folder / self.file).write_text(self._svg, encoding="utf-8")
        if self.numbers is not None:
            _write_csv(self.numbers, folder, self.name)

    @property
    def svg(self) -> Markup:
        description = html.escape(self.caption, quote=True)
        return Markup(figures.inline_svg(self._svg, self.name, description))  # our own drawing; its texts are escaped

    @cached_property
    def _svg(self) -> str:
        return figures.svg_text(self.figure, transparent=self.kind == "png")  # the page's colour is not a file's


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes ``folder/index.html``, ``folder/figures/*.png`` and ``folder/tables/*.csv``; returns the page's path.

    The same data gives the same bytes: no clock, no random ids.
    """
    return write_page(
        folder,
        "page.html.j2",
        _figures(data),
        _tables(data),
        data=data,
        examples=[_example(example, data.titles) for example in data.examples],
        floor=next(iter(data.titles.values()), ""),
    )


def write_page(
    folder: Path, template: str, drawn: Mapping[str, Drawn], listed: Mapping[str, Table], **shown: Any
) -> Path:
    """Writes the figures, the tables and the page that shows them and ``shown``; returns the page's path."""
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for item in drawn.values():
        item.write(folder)
    for table in listed.values():
        _write_csv(table.csv, folder, table.name)
    light, dark = figures.css_colours()
    page = _template(template).render(
        figures=drawn, tables=listed, light=light, dark=dark, colours=len(figures.SERIES), **shown
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def _write_csv(frame: pd.DataFrame, folder: Path, name: str) -> None:
    frame.to_csv(folder / "tables" / f"{name}.csv", index=False, lineterminator="\n")


def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # titles of items are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _sample(data: ReportData) -> str:
    return f"Sample: {data.sample.rstrip('.')}."


def _tables(data: ReportData) -> dict[str, Table]:
    sample = _sample(data)
    floor = next(iter(data.titles.values()), "the first system")
    made = [
        *_metric_tables(data, sample),
        tables.difference_table(
            data.predictions,
            data.titles,
            f"Each system minus {floor}, row by row: 95% interval and two-sided p of a paired bootstrap over users. "
            f"For log loss, less is better. {sample}",
        ),
        tables.stage_table(
            data.progress, f"Medians over the logged steps of each stage; validation AUC on validation rows. {sample}"
        ),
        *data_tables(data.manifest, sample),
        tables.pairs_table("versions", data.versions, f"Packages that produced these numbers. {sample}"),
    ]
    return {table.name: table for table in made}


def data_tables(manifest: Mapping[str, Any], sample: str) -> list[Table]:
    """What preparation left: its steps, the splits, and the rest that the manifest says."""
    splits = [{"split": name, **counts} for name, counts in manifest.get("splits", {}).items()]
    facts = {key: value for key, value in manifest.items() if key not in {"steps", "splits"}}
    return [
        tables.records_table("data_steps", manifest.get("steps", ()), f"What each step of preparation left. {sample}"),
        tables.records_table("data_splits", splits, f"The splits; the test split is what the sample is of. {sample}"),
        tables.pairs_table("data", facts, f"What else is known of the prepared data. {sample}"),
    ]


def _metric_tables(data: ReportData, sample: str) -> list[Table]:
    interval = "Small type: 95% interval, bootstrap over users. Bold: best, whether or not intervals overlap."
    return [
        tables.metric_table(
            name,
            metrics=data.metrics,
            titles=data.titles,
            columns=columns,
            parts=parts,
            caption=f"{text} {interval} {sample}",
        )
        for name, columns, parts, text in (
            (
                "headline",
                tables.HEADLINE,
                ("all",),
                "UAUC: unweighted mean of the users’ own AUCs, over users with both answers. Accuracy and F1 (of the "
                "class “like”) at the configured evaluation.cutoff. ECE: 15 equal-width bins.",
            ),
            (
                "precision_recall",
                tables.PRECISION_RECALL,
                ("all",),
                "Precision, recall and F1 of the class “like”, and their macro means over both classes.",
            ),
            (
                "slices",
                tables.COMPARED,
                ("warm", "cold", "strict_cold"),
                "Warm: user and item are both well represented in training; cold: the rest; strict cold: neither "
                "occurs in training.",
            ),
        )
    ]


def _figures(data: ReportData) -> dict[str, Drawn]:
    sample = _sample(data)
    made = [
        Drawn(
            name="slices",
            figure=figures.slices_figure(data.metrics, data.titles),
            caption=f"AUC and UAUC by slice with 95% intervals; a dash where a slice has no value. {sample}",
        ),
        Drawn(
            name="training",
            figure=training_figure(data.progress),
            caption="Training loss (thin: as logged, thick: smoothed) and validation AUC over all stages, end to end.",
        ),
        Drawn(
            name="curves",
            figure=figures.curves_figure(data.predictions, data.titles),
            caption="ROC curves; calibration, where the diagonal is perfect and a dot's area is its share of the rows; "
            f"and where the scores lie. {sample}",
        ),
    ]
    return {item.name: item for item in made}


def _example(example: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    scores = []
    for index, (system, title) in enumerate(titles.items()):
        value = tables.number(example.get("scores", {}).get(system))
        percent = f"{100 * value:.1f}" if math.isfinite(value) else "0"
        series = index % len(figures.SERIES)
        scores.append({"title": title, "series": series, "text": tables.fixed(value), "percent": percent})
    return {
        "title": str(example.get("title") or ""),
        "prompt": str(example.get("prompt", "")),
        "liked": example.get("label") == 1,
        "scores": scores,
    }
