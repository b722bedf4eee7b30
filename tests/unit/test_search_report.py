"""The report of a search, made of invented trials: whole, safe, the same each time, right for "max" and "min"."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pages import assert_ids_are_unique, assert_needs_no_network, assert_same_files, outside_figures, table_captions

from rayrec.report import SearchReportData, write_search_report
from rayrec.report.scales import is_cut, scale, short_names, span
from rayrec.report.search_figures import standing, worst_reported

HOSTILE = "</td><script>alert('x')</script> \"$\\frac{1}$\" & <img src=https://example.com/x.png>"
STAGE = "stages.pretrain_encoder"
SPACE = {
    f"{STAGE}.optimizer.lr": "log-uniform, 0.0001 .. 0.01",
    f"{STAGE}.optimizer.weight_decay": "log-uniform, 1e-06 .. 0.01",
    "encoder.dropout": "uniform, 0 .. 0.5",
    "encoder.dim": "one of 32, 64, 128",
    "encoder.layers": "whole, 1 .. 4",
    "encoder.norm_first": "one of True, False",
}
NAN = float("nan")


def invented(trials: int = 24) -> SearchReportData:
    generator = np.random.default_rng(11)
    rows, evaluations = [], []
    for trial in range(trials):
        lr, decay = 10 ** generator.uniform(-4, -2), 10 ** generator.uniform(-6, -2)
        dropout, dim = generator.uniform(0, 0.5), int(generator.choice([32, 64, 128]))
        layers, first = int(generator.integers(1, 5)), bool(generator.random() < 0.5)
        reach = 0.745 - 0.03 * (np.log10(lr) + 2.8) ** 2 - 0.1 * (dropout - 0.2) ** 2 + 0.01 * (dim == 64)
        status = "failed" if trial % 11 == 5 else ("complete" if trial % 3 == 0 else "stopped")
        epochs = {"complete": 10, "stopped": int(generator.choice([1, 3])), "failed": 1}[status]
        curve = [
            float(reach - 0.2 * np.exp(-0.6 * (epoch + 1)) + generator.normal(0, 0.003)) for epoch in range(epochs)
        ]
        evaluations += [{"trial": trial, "step": 160 * (e + 1), "value": value} for e, value in enumerate(curve)]
        rows.append(
            {
                "trial": trial,
                "status": status,
                "reason": "CUDA out of memory: tried to allocate 2.1 GiB" if status == "failed" else None,
                "value": NAN if status == "failed" else max(curve),
                "best_step": 160 * (int(np.argmax(curve)) + 1),
                "steps": 160 * epochs,
                "planned_steps": 1600,
                "seconds": 11.5 * epochs + 4.25,
                **dict(zip(SPACE, (lr, decay, dropout, dim, layers, first), strict=True)),
            }
        )
    return SearchReportData(
        title="encoder-ml100k: search of pretrain_encoder on ml-100k",
        metric="valid_auc",
        mode="max",
        space=SPACE,
        trials=pd.DataFrame(rows),
        evaluations=pd.DataFrame(evaluations),
        importance=dict(zip(SPACE, (0.52, 0.07, 0.21, 0.11, 0.06, 0.03), strict=True)),
        schedulers=[
            {"scheduler": "asha", "trials": 24, "best value": 0.7461, "optimizer steps": 18560, "seconds": 1421.75},
            {"scheduler": "none", "trials": 24, "best value": 0.7467, "optimizer steps": 38400, "seconds": 2866.5},
        ],
        best_yaml="encoder:\n  dim: 64\n  dropout: 0.21\n",
        versions={"rayrec": "0.1.0", "ray": "2.55.0"},
        notes=["One seed: a search picks the luckiest of its trials, too."],
    )


def with_trials(data: SearchReportData, **columns: Any) -> SearchReportData:
    trials = data.trials.copy()
    for name, values in columns.items():
        trials[name] = values
    return replace(data, trials=trials)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data() -> SearchReportData:
    return invented()


@pytest.fixture(scope="module")
def folder(data: SearchReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("search")
    write_search_report(data, place)
    return place


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return text_of(folder / "index.html")


def test_same_data_gives_the_same_bytes(data: SearchReportData, folder: Path, tmp_path: Path) -> None:
    write_search_report(data, tmp_path)
    assert_same_files(folder, tmp_path)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 1 + 5 + 4


def test_page_loads_nothing(page: str) -> None:
    assert_needs_no_network(page)


def test_page_shows_what_it_was_given(data: SearchReportData, page: str) -> None:
    best = data.trials.loc[data.trials["value"].idxmax()]
    assert f"Highest valid_auc: {best['value']:.4f}, trial {best['trial']} at step" in page
    for text in (*data.notes, "dim: 64", "2.55.0", "asha", "CUDA out of memory", *SPACE, *SPACE.values()):
        assert text in page
    assert_ids_are_unique(page)
    assert "nan" not in outside_figures(page).lower()


def test_every_table_says_that_values_are_on_validation_data(page: str) -> None:
    captions = table_captions(page)
    assert len(captions) == 4
    assert all("Values are on validation data; the test set was not read." in caption for caption in captions)


def test_early_stopping_is_counted_without_failed_trials(data: SearchReportData, page: str) -> None:
    ran = data.trials[data.trials["status"] != "failed"]
    planned, trained = int(ran["planned_steps"].sum()), int(ran["steps"].sum())
    assert f"saved {100 * (1 - trained / planned):.1f}% of the steps: {planned - trained:,} of the {planned:,}" in page


@pytest.mark.parametrize(
    ("mode", "so_far", "ranks"),
    [
        ("max", [NAN, 0.5, 0.5, 0.9, 0.9, 0.9], [NAN, 3, 4, 1, 2, NAN]),  # of equal ones the earlier is before
        ("min", [NAN, 0.5, 0.5, 0.5, 0.5, 0.5], [NAN, 1, 2, 4, 3, NAN]),
    ],
)
def test_ranks_and_best_so_far(
    data: SearchReportData, tmp_path: Path, mode: Any, so_far: list[float], ranks: list[float]
) -> None:
    few = replace(data, mode=mode, trials=data.trials.head(6))
    values = [NAN, 0.5, 0.5, 0.9, 0.7, 1.5 if mode == "max" else 0.1]  # the last one failed after it: it does not count
    write_search_report(
        with_trials(few, value=values, status=["complete"] * 3 + ["stopped"] * 2 + ["failed"]), tmp_path
    )
    written = pd.read_csv(tmp_path / "tables" / "trials.csv").set_index("trial").sort_index()
    np.testing.assert_array_equal(written["best_so_far"], so_far)
    np.testing.assert_array_equal(written["rank"], ranks)
    np.testing.assert_array_equal(written["value"], values)


def test_a_trial_that_was_interrupted_is_shown(data: SearchReportData, tmp_path: Path) -> None:
    """Its process was lost, or the search ended before it did."""
    states = ["interrupted" if i == 1 else status for i, status in enumerate(data.trials["status"])]
    write_search_report(with_trials(data, status=states), tmp_path)
    assert "1 interrupted" in text_of(tmp_path / "index.html")


def test_everything_failed(data: SearchReportData, tmp_path: Path) -> None:
    count = len(data.trials)
    failed = with_trials(data, value=[NAN] * count, status=["failed"] * count, reason=["it broke"] * count)
    page = text_of(write_search_report(replace(failed, evaluations=data.evaluations[:0], importance={}), tmp_path))
    assert "No trial gave a value of valid_auc. 24 trials: 24 failed." in page and "nothing recorded" in page
    assert not (tmp_path / "figures" / "importance.png").exists()
    assert pd.read_csv(tmp_path / "tables" / "trials.csv")["rank"].isna().all()
    assert "nan" not in outside_figures(page).lower()


@pytest.mark.parametrize("parameters", [1, 10])
def test_one_trial_and_few_or_many_parameters(data: SearchReportData, tmp_path: Path, parameters: int) -> None:
    paths = [f"stages.tune_lora.part_{index}.a_rather_long_name" for index in range(parameters)]
    trials = data.trials.head(1).assign(**dict.fromkeys(paths, 0.5))
    space = dict.fromkeys(paths, "log-uniform, 0.1 .. 1")
    one = replace(data, trials=trials, space=space, importance={}, evaluations=data.evaluations.head(1))
    page = text_of(write_search_report(replace(one, schedulers=[], notes=[], versions={}, best_yaml=""), tmp_path))
    assert "1 trial: 1 complete." in page and all(path in page for path in paths)


def test_hostile_text_is_inert(data: SearchReportData, tmp_path: Path) -> None:
    path = f"encoder.{HOSTILE}"
    hostile = with_trials(data, reason=[HOSTILE] * 24, **{path: [HOSTILE, "a"] * 12})
    page = text_of(
        write_search_report(
            replace(
                hostile,
                title=HOSTILE,
                metric=HOSTILE,
                space={path: f"one of {HOSTILE}"},
                importance={path: 1.0},
                schedulers=[{HOSTILE: HOSTILE}],
                best_yaml=HOSTILE,
                versions={HOSTILE: HOSTILE},
                notes=[HOSTILE],
            ),
            tmp_path,
        )
    )
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") >= 24
    assert not re.search(r'aria-label="[^"]*<', page)


def test_axes_are_logarithmic_where_the_words_say_so() -> None:
    values = [0.0001, 0.001, 0.01]
    assert scale(values, "log-uniform, 0.0001 .. 0.01").is_log
    np.testing.assert_allclose(scale(values, "log-uniform, 0.0001 .. 0.01").places, [0, 0.5, 1])
    np.testing.assert_allclose(scale(values, "uniform, 0.0001 .. 0.01").places, [0, 1 / 11, 1])
    assert not scale([0.0, 1.0], "log-uniform").is_log  # zero has no logarithm
    assert [label for _, label in scale(values, "log").ticks] == ["0.0001", "0.001", "0.01"]


def test_choices_are_evenly_spaced() -> None:
    sizes = scale([64, 8, 1024.0, 64], "one of 8, 64, 1024")
    np.testing.assert_allclose(sizes.places, [0.5, 0, 1, 0.5])
    assert sizes.ticks == ((0.0, "8"), (0.5, "64"), (1.0, "1024"))
    np.testing.assert_allclose(scale([True, False, None], "").places, [0.5, 0, 1])
    assert len(scale([str(number) for number in range(100)], "").ticks) <= 18


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["a.lr", "b.lr", "c.dim", "lr"]) == {"a.lr": "a.lr", "b.lr": "b.lr", "c.dim": "dim", "lr": "lr"}


def test_an_axis_leaves_out_what_is_worse_by_far() -> None:
    losses = np.array([0.60, 0.61, 0.62, 0.63, 40.0, NAN])
    assert span(losses, "min")[0] == 0.60 and span(losses, "min")[1] < 1
    assert span(losses, "max") == (0.60, 40.0)
    assert is_cut(losses, "min") and not is_cut(losses, "max")
    assert span(np.array([NAN]), "max") == (0.0, 1.0)


def test_no_trial_at_all(data: SearchReportData) -> None:
    ranks = standing(data.trials[:0], "min")
    assert ranks.best is None and ranks.order == ()


def test_the_beginning_of_a_curve_is_not_left_out() -> None:
    rows = pd.DataFrame({"trial": [0] * 6 + [1], "step": [*range(6), 0], "value": [0.1, *[0.7] * 5, NAN]})
    np.testing.assert_array_equal(worst_reported(rows, "max"), [0.1])
    assert not is_cut(worst_reported(rows, "max"), "max")
