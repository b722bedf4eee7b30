"""What the file of an experiment may say."""

from pathlib import Path
from typing import Any

import pytest
from experiments import ROOT, experiment, with_system

from rayrec.binding import EXPERIMENT, bind, is_bound
from rayrec.errors import InputError
from rayrec.experiment.settings import load_experiment
from rayrec.settings import load


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_experiment_loads(path: Path) -> None:
    found = load_experiment(path)
    assert len(found.config.systems) >= 4 and found.config.name.startswith("experiment-")


def test_the_best_configuration_is_what_its_table_shows() -> None:
    shown = load_experiment(ROOT / "configs" / "experiments" / "ml1m_best.yaml")
    row = shown.configuration("SASRecLLM, from that", seed=0)
    best = load(ROOT / "configs" / "ml1m_best.yaml")
    assert row.model_dump(exclude={"name"}) == best.model_dump(exclude={"name"})


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"sytems": {}}, r"e\.yaml: unknown key 'sytems'; did you mean 'systems'\?"),
    "unknown key of a system": (
        with_system("MF [64].", {"system": "sasrec", "sets": {}}),
        r"e\.yaml: systems\.MF \[64\]\.: unknown key 'sets'; did you mean 'set'\?",
    ),
    "no such system": (with_system("X", {"system": "sasrek"}), r"systems\.X: system: .*'sasrec'.*got 'sasrek'"),
    "no system": (with_system("X", {"set": {}}), r"systems\.X: system: missing"),
    "none at all": ({"systems": {}}, r"systems: .*at least 1 item"),
    "no seed": ({"seeds": []}, r"seeds: .*at least 1 item"),
    "a seed below zero": ({"seeds": [-1]}, r"seeds\.0: .*greater than or equal to 0"),
    "a seed twice": ({"seeds": [1, 1]}, r"seeds: \[1, 1\] names a seed twice"),
    "reference misspelt": ({"reference": "SASrec"}, r"no system has the title 'SASrec'; did you mean 'SASRec'\?"),
    "reference missing": ({"reference": "?"}, r"reference: no system has the title '\?'; titles: Floor, SASRec, MF"),
    "the store's name": ({"name": "store"}, r"name: 'store' is the folder of stage results"),
    "unknown path of all": ({"set": {"encoder.widht": 8}}, r"e\.yaml: set: unknown key 'encoder\.widht'"),
    "unknown path of one": (
        with_system("X", {"system": "sasrec", "set": {"encoder.widht": 8}}),
        r"e\.yaml: systems\.X\.set: unknown key 'encoder\.widht'; did you mean 'width'\?",
    ),
    "refused together": (
        with_system("X", {"system": "sasrec", "set": {"encoder.heads": 5}}),
        r"systems\.X\.set: encoder: width 32 is not divisible by heads 5",
    ),
    "a seed of its own": (
        with_system("X", {"system": "sasrec", "set": {"seed": 3}}),
        r"systems\.X\.set\.seed: all systems share seed; set it for the whole experiment",
    ),
    "other test rows": (
        with_system("X", {"system": "icl", "set": {"evaluation": {"users": 3}}}),
        r"systems\.X\.set\.evaluation: all systems share evaluation\.users",
    ),
    "the same twice": (
        with_system("X", {"system": "sasrec", "set": {"stages.tune_lora.lr": 0.5}}),
        r"systems\.X: comes to the same sasrec as 'SASRec'; leave one of them out",
    ),
    "a blank title": (with_system(" ", {"system": "icl"}), r"systems: ' ' is no title"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(case: str, tmp_path: Path) -> None:
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        experiment(tmp_path, changes)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


def test_overrides(tmp_path: Path) -> None:
    experiment(tmp_path)
    found = load_experiment(tmp_path / "e.yaml", ["seeds=[3]", "set.encoder.width=16"])
    assert found.config.seeds == (3,) and found.configuration("MF", 3).encoder.width == 16
    with pytest.raises(InputError, match=r"--set systems\.MF\.set\.seed=1: titles may hold dots"):
        load_experiment(tmp_path / "e.yaml", ["systems.MF.set.seed=1"])


def test_every_pair_has_its_configuration(tmp_path: Path) -> None:
    found = experiment(tmp_path)
    assert [found.seeds(title) for title in found.config.systems] == [(0,), (0, 1), (0, 1), (0, 1)]
    assert found.configuration("MF", 1).seed == 1 and found.configuration("MF", 1).encoder.kind == "mf"
    assert found.configuration("SASRec", 1).encoder.kind == "sasrec"
    assert found.configuration("Mapper only", 0).stages.tune_hybrid.trains == ("mapper",)


def test_titles_have_folders_of_their_own(tmp_path: Path) -> None:
    titles = ["SASRec", "A/b", "a b", "☃", "✓", "../x", "store", "Mapper only"]
    entries = {
        title: {"system": "sasrec", "set": {"stages.pretrain_encoder.lr": 1e-3 * (1 + i)}}
        for i, title in enumerate(titles)
    }
    slugs = experiment(tmp_path, {"systems": entries}).slugs
    assert len({slug.lower() for slug in slugs.values()}) == len(titles)
    assert all(Path(slug).name == slug and slug.strip(".") for slug in slugs.values())
    assert slugs["Mapper only"] == "mapper-only" and slugs["SASRec"] == "sasrec" and slugs["../x"] == "x"


def test_a_name_stands_for_one_base_and_any_systems(tmp_path: Path) -> None:
    folder = str(tmp_path / "runs" / "e")
    bind(folder, EXPERIMENT, experiment(tmp_path).identity, {})
    assert is_bound(
        folder, EXPERIMENT, experiment(tmp_path, {"seeds": [4], **with_system("I", {"system": "icl"})}).identity
    )
    with pytest.raises(
        InputError, match=r"the name 'e' already holds another configuration \(base\.encoder\.width: 32"
    ):
        is_bound(folder, EXPERIMENT, experiment(tmp_path, {"set": {"encoder.width": 16}}).identity)
