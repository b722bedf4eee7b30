"""An experiment of folds: what its file may say, and its pairs."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from folded import PLAIN, TWO, addressed, based, experiment

from rayrec.binding import EXPERIMENT, bind, is_bound
from rayrec.errors import InputError
from rayrec.experiment import study
from rayrec.experiment.pairs import all_pairs, variants
from rayrec.experiment.plan import print_experiment_plan

# Its file


def test_folds_are_asked_for_in_the_base_in_the_file_and_by_an_option(tmp_path: Path) -> None:
    found = [
        experiment(tmp_path, {}, base=based(tmp_path, {"folds": 3})),
        experiment(tmp_path, {"data.split": {"folds": 3}}),
        experiment(tmp_path, {"data.split.folds": 3}),
        experiment(tmp_path, {}, "set.data.split={folds: 3}"),
        experiment(tmp_path, {}, "set.data.split.folds=3"),
        experiment(tmp_path, {"data.split": {"folds": 3}}, base=based(tmp_path, {"train": 0.7, "valid": 0.1})),
    ]
    for one in found:
        assert one.folds == 3 and one.each_fold == (1, 2, 3)
        assert one.identity["base"]["data"]["split"] == {"folds": 3}
        assert [one.configuration("MF", 1, fold).data.split.fold for fold in one.each_fold] == [1, 2, 3]
        assert len({one.configuration("MF", 1, fold).name for fold in one.each_fold}) == 3


def test_one_fold_is_an_ordinary_split(tmp_path: Path) -> None:
    for one in (
        experiment(tmp_path, {"data.split": {"folds": 3, "fold": 2}}),
        experiment(tmp_path, {"data.split.fold": 2}, base=based(tmp_path, {"folds": 3})),
    ):
        assert one.folds is None and one.each_fold == (None,)
        assert one.base.data.split.cuts(50) == (20, 30, 40)
    plain = experiment(tmp_path, {})
    assert plain.folds is None and plain.identity["base"]["data"]["split"] == {"train": 0.8, "valid": 0.1}


@pytest.mark.parametrize(
    ("values", "own", "message"),
    [
        (TWO, {"data.split": {"train": 0.7}}, r"systems\.X\.set\.data\.split: all systems share the 2 folds"),
        (TWO, {"data.split.fold": 2}, r"systems\.X\.set\.data\.split\.fold: all systems share the 2 folds"),
        (TWO, {"data": {"history": 3}}, r"systems\.X\.set\.data: all systems share the 2 folds"),
        ({}, {"data.split": {"folds": 2}}, r"systems\.X\.set: data\.split: 2 folds are as many runs; name one"),
        ({"data.split": {"folds": 2, "train": 0.5}}, {}, r"set: data\.split: folds are blocks of equal size"),
        ({"data.split": {"folds": "two"}}, {}, r"set: data\.split\.folds: Input should be a valid integer"),
    ],
)
def test_bad_folds_are_one_line(values: dict[str, Any], own: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        experiment(tmp_path, values, systems=PLAIN["systems"] | {"X": {"system": "icl", "set": own}})
    assert "\n" not in str(caught.value)


def test_a_system_may_have_other_prompts_in_the_same_folds(tmp_path: Path) -> None:
    of = experiment(tmp_path, systems=PLAIN["systems"] | {"X": {"system": "icl", "set": {"data.history": 3}}})
    assert [(one.fold, one.titles) for one in variants(of)] == [
        (1, ["Floor", "SASRec", "MF"]),
        (1, ["X"]),
        (2, ["Floor", "SASRec", "MF"]),
        (2, ["X"]),
    ]


def test_a_name_stands_for_its_folds(tmp_path: Path) -> None:
    folder = str(tmp_path / "runs" / "e")
    bind(folder, EXPERIMENT, experiment(tmp_path).identity, {})
    assert is_bound(folder, EXPERIMENT, experiment(tmp_path, seeds=[4]).identity)
    with pytest.raises(InputError, match=r"another configuration \(base\.data\.split\.folds: 2 -> 3\)"):
        is_bound(folder, EXPERIMENT, experiment(tmp_path, {"data.split": {"folds": 3}}).identity)


# Its pairs


def test_a_pair_is_a_system_a_seed_and_a_fold(tmp_path: Path) -> None:
    pairs = addressed(experiment(tmp_path))
    assert [pair.label for pair in pairs] == [
        *("Floor, fold 1", "Floor, fold 2"),
        *("SASRec, seed 0, fold 1", "SASRec, seed 1, fold 1", "SASRec, seed 0, fold 2", "SASRec, seed 1, fold 2"),
        *("MF, seed 0, fold 1", "MF, seed 1, fold 1", "MF, seed 0, fold 2", "MF, seed 1, fold 2"),
    ]
    assert len({pair.fingerprint for pair in pairs}) == len({pair.run.folder for pair in pairs}) == len(pairs)
    trained = [job.fingerprint for pair in pairs for job in pair.jobs.values()]
    assert len(set(trained)) == len(trained) == 8  # no stage serves two folds
    assert {pair.run.data.folder for pair in pairs} == {one.data.folder for one in variants(experiment(tmp_path))}


def test_an_experiment_of_one_fold_has_the_pairs_of_that_fold(tmp_path: Path) -> None:
    both = {pair.fingerprint: pair.fold for pair in addressed(experiment(tmp_path))}
    one = all_pairs(experiment(tmp_path, {"data.split": {"folds": 2, "fold": 1}}))
    assert {both[pair.fingerprint] for pair in one} == {1} and len(one) == 5


def test_a_plan_shows_the_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = experiment(tmp_path)
    print_experiment_plan(of)
    before = capsys.readouterr().out
    assert "fold 1     block 1 of 4 train, 2 valid, 3 test\n" in before
    assert "fold 2     blocks 1 to 2 of 4 train, 3 valid, 4 test\n" in before and "10 pairs at most" in before
    addressed(of)
    print_experiment_plan(of)
    after = capsys.readouterr().out
    assert "fold 1     block 1 of 4 train, 2 valid, 3 test; 9, 9, 9 rows\n" in after
    assert "10 of 10 pairs, for which 8 stages are to be trained" in after


def test_systems_must_be_tested_on_the_same_rows_of_a_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds differ in their rows, and that is as it should be."""
    of = experiment(tmp_path, systems=PLAIN["systems"] | {"X": {"system": "icl", "set": {"data.history": 3}}})
    folds = {one.data.folder: (one.fold, one.titles) for one in variants(of)}
    monkeypatch.setattr(study, "prepare_rows", lambda config, data: True)
    monkeypatch.setattr(study, "prepare_beside", lambda config, data, beside: None)
    monkeypatch.setattr(study, "_sampled_rows", lambda run: pd.DataFrame({"fold": [folds[run.data.folder][0]]}))
    study._prepare(of, {"CPU": 99})
    monkeypatch.setattr(study, "_sampled_rows", lambda run: pd.DataFrame({"rows": folds[run.data.folder]}))
    with pytest.raises(InputError, match=r"systems\.X\.set: its test rows are not those of 'Floor'"):
        study._prepare(of, {"CPU": 99})
