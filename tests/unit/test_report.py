"""The report, made of invented numbers: whole, safe, the same each time, and patient with what is missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pages import assert_ids_are_unique, assert_needs_no_network, assert_same_files, outside_figures, table_captions

from rayrec.config import Config
from rayrec.metrics import METRICS, SLICES, evaluate_slices
from rayrec.report import ReportData, tables, write_report
from rayrec.stages import EncoderKind
from rayrec.systems import titles

HOSTILE = "</blockquote><script>alert('x')</script> \"$\\frac{1}$\" & <img src=https://example.com/x.png>"


def invented() -> ReportData:
    rows, named = 1000, {str(name): title for name, title in titles(EncoderKind.SASREC).items()}
    generator = np.random.default_rng(7)
    user, item = np.sort(generator.integers(0, 100, rows)), generator.integers(1, 400, rows)
    taste = generator.normal(0, 0.7, rows) + generator.normal(0, 0.6, 100)[user]
    label = (generator.random(rows) < 1 / (1 + np.exp(-taste))).astype(np.int8)
    warm = generator.random(rows) < 0.7
    strict = ~warm & (generator.random(rows) < 0.15)
    predictions = {}
    for index, system in enumerate(named):
        logit = taste * (0.3 + 0.2 * index) + generator.normal(0, 1.2 - 0.1 * index, rows)
        columns = {"user_id": user, "item_id": item, "label": label, "score": 1 / (1 + np.exp(-logit))}
        predictions[system] = pd.DataFrame({**columns, "is_warm": warm, "is_strict_cold": strict})
    return ReportData(
        title="ml100k-smollm2",
        config_yaml="name: ml100k-smollm2\nseed: 0\nengine:\n  zero_stage: 2\n  precision: bf16\n",
        versions={"rayrec": "0.1.0", "ray": "2.55.0", "torch": "2.9.1"},
        manifest={
            "steps": [
                {"step": "read", "rows": 100000, "users": 943, "items": 1682, "dropped": {}},
                {"step": "clean", "rows": 99998, "users": 943, "items": 1681, "dropped": {"no title": 2}},
            ],
            "split": {"t_test": 889237269, "iso": {"t_test": "1998-03-07T02:21:09+00:00"}},
            "splits": {"train": {"rows": 79998, "users": 751}, "test": {"rows": 10000, "users": 149}},
        },
        metrics={system: evaluate_slices(frame, resamples=200) for system, frame in predictions.items()},
        titles=named,
        predictions=predictions,
        progress={
            str(stage): invented_progress(generator, steps)
            for stage, steps in zip(Config().stages.written, (80, 400, 600), strict=True)
        },
        examples=[
            {
                "prompt": '#Question: A user has given high ratings to these items: "Heat (1995)", "Fargo (1996)". '
                'Predict whether the user would enjoy "Brazil (1985)"? Answer with "Yes" or "No". #Answer:',
                "label": 1,
                "scores": {system: 0.3 + 0.1 * index for index, system in enumerate(named)},
                "title": "Brazil (1985)",
            },
            {"prompt": HOSTILE, "label": 0, "scores": {}, "title": HOSTILE},
        ],
        sample="1,000 rows of 100 test users, the same for every system",
        notes=["One seed: differences between runs are not shown.", "A smoke test, not a benchmark."],
    )


def invented_progress(generator: np.random.Generator, steps: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.55 + 0.15 * np.exp(-4 * step / steps) + generator.normal(0, 0.03)
        rate = {"rows_per_s": 812.4 + step % 7, "tokens_per_s": 90210.0, "wait_share": 0.021}
        rows.append({"step": step, "epoch": step // 50, "loss": float(loss), "lr": 1e-3, **rate})
        if step % 40 == 0:
            valid = {
                "valid_auc": 0.6 + 0.1 * step / steps,
                "valid_uauc": 0.58 + 0.1 * step / steps,
                "valid_log_loss": 0.6,
            }
            rows.append({"step": step, "epoch": step // 50, **valid})
    return rows


@pytest.fixture(scope="module")
def data() -> ReportData:
    return invented()


@pytest.fixture(scope="module")
def folder(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    write_report(data, place)
    return place


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def test_names_cover_every_metric_and_slice() -> None:
    assert set(tables.METRIC_TITLES) == set(METRICS)
    assert set(tables.SLICE_TITLES) == set(SLICES)


def test_page_loads_nothing(page: str) -> None:
    assert_needs_no_network(page)


def test_hostile_titles_are_text(page: str) -> None:
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_same_data_gives_the_same_bytes(data: ReportData, folder: Path, tmp_path: Path) -> None:
    write_report(data, tmp_path)
    assert_same_files(folder, tmp_path)


def test_figures_and_tables_lie_beside_the_page(data: ReportData, folder: Path) -> None:
    for name in ("slices", "training", "curves"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    headline = pd.read_csv(folder / "tables" / "headline.csv").set_index("system")
    for system, slices in data.metrics.items():
        assert headline.loc[system, "auc"] == pytest.approx(slices["all"]["metrics"]["auc"]["value"], abs=1e-12)
        assert headline.loc[system, "rows"] == 1000
    assert len(pd.read_csv(folder / "tables" / "slices.csv")) == 3 * len(data.titles)
    assert len(pd.read_csv(folder / "tables" / "data_steps.csv")) == 2


def test_every_table_says_which_rows(data: ReportData, page: str) -> None:
    captions = table_captions(page)
    assert len(captions) == 9
    assert all(data.sample in caption for caption in captions)


def test_page_shows_what_it_was_given(data: ReportData, page: str) -> None:
    auc = data.metrics["sasrecllm"]["all"]["metrics"]["auc"]
    assert f"{auc['value']:.3f}" in page and f"{auc['low']:.3f} – {auc['high']:.3f}" in page
    for text in ("1998-03-07", "no title: 2", "zero_stage: 2", "tune_hybrid", "2.55.0", *data.notes):
        assert text in page
    assert_ids_are_unique(page)


def test_missing_things_are_dashes_and_hostile_system_titles_text(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "user_id": [0, 1],
            "item_id": [1, 1],
            "label": [1, 1],
            "score": [0.2, 0.7],
            "is_warm": True,
            "is_strict_cold": False,
        }
    )
    metrics = json.loads(json.dumps({"one": evaluate_slices(frame, resamples=10)}))  # as metrics.json gives them back
    bare: dict[str, Any] = {"config_yaml": "", "versions": {}, "manifest": {}, "examples": [], "notes": []}
    page = write_report(
        ReportData(
            title="bare",
            metrics=metrics,
            titles={"one": HOSTILE, "two": "_never $scored$"},
            predictions={"one": frame},
            progress={"tune_lora": [], "tune_hybrid": [{"step": 1, "loss": None}]},
            sample="two rows",
            **bare,
        ),
        tmp_path,
    )
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text
    assert text.count("&lt;script&gt;") >= 5  # in the tables and in the figures
    assert ">–<" in text and "nan" not in outside_figures(text).lower()
