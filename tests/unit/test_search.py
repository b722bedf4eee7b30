"""A search before its first trial: what its file may say, what is suggested, what is made of the answers."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from rayrec.config.training import ClusterConfig
from rayrec.data.beside import Beside
from rayrec.errors import InputError
from rayrec.search.config import Search, as_yaml, load_search
from rayrec.search.live import Following
from rayrec.search.results import Results, Told
from rayrec.search.space import grid
from rayrec.search.study import comparable, concurrent_trials, read_by_trials
from rayrec.search.suggest import NUMBER, OBJECTIVE, TRIAL, VALUES, Suggester
from rayrec.settings import load
from rayrec.stages import StageName
from rayrec.training.cluster import capacity

ROOT = Path(__file__).resolve().parents[2]
LR = "stages.pretrain_encoder.lr"
PLAIN: dict[str, Any] = {
    "name": "s",
    "base": str(ROOT / "configs" / "smoke.yaml"),
    "objective": {"stage": "pretrain_encoder"},
    "space": {"encoder.width": [16, 32], LR: {"loguniform": [1e-4, 1e-2]}},
    "budget": {"trials": 6},
}


def search(folder: Path, changes: Mapping[str, Any] = {}) -> Search:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(PLAIN | dict(changes), sort_keys=False))
    return load_search(path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "search").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_search_loads(path: Path) -> None:
    found = load_search(path)
    assert found.trials >= 4 and found.config.name.startswith("search-")


def test_an_override_of_the_base_changes_one_key_of_a_section(tmp_path: Path) -> None:
    """It once replaced the section: ``set.data.sources`` brought the default dataset back."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(PLAIN | {"set": {"cluster.workers": 1, "data.history": 3}}))
    found = load_search(tmp_path / "s.yaml", ["set.data.threshold=3", "set.data.history=4", f"space.{LR}=[0.001]"])
    assert (found.base.data.dataset, found.base.data.history, found.base.data.threshold) == ("synthetic", 4, 3.0)
    assert found.base.cluster.workers == 1 and set(found.config.space) == {"encoder.width", LR}


def test_an_override_below_a_value_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(PLAIN | {"set": 3}))
    with pytest.raises(InputError, match=r"--set set\.data\.history: 'set' is a value, not a section"):
        load_search(tmp_path / "s.yaml", ["set.data.history=4"])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"space": {"encoder.widht": [16]}}, r"unknown key 'encoder\.widht'; did you mean 'width'\?"),
    "unknown section": ({"space": {"encodr.width": [16]}}, r"unknown key 'encodr'; did you mean 'encoder'\?"),
    "refused value": ({"space": {"encoder.dropout": [0.1, 1.5]}}, r"space\.encoder\.dropout: 1\.5: .*less than 1"),
    "refused end of a range": ({"space": {LR: {"uniform": [-1, 1]}}}, r"lr: -1\.0: .*greater than 0"),
    "refused together": (
        {"space": {"encoder.width": [16, 30], "encoder.heads": [2, 4]}},
        r"encoder\.width: 30: .*width 30 is not divisible by heads 4",
    ),
    "only together": (
        {"set": {"encoder.heads": 2}, "space": {"encoder.width": [16, 30], "encoder.heads": [2, 8]}},
        r"encoder\.width=30, encoder\.heads=8: .*not divisible",
    ),
    "of no effect": ({"space": {"lora.r": [4]}}, r"space\.lora\.r: changes nothing that pretrain_encoder computes"),
    "of a later stage": ({"space": {"stages.tune_hybrid.lr": [1.0]}}, r"changes nothing that pretrain_encoder"),
    "of a stage that is not needed": (
        {
            "objective": {"stage": "tune_hybrid"},
            "set": {"stages.tune_hybrid.starts_from.encoder": "fresh"},
            "space": {"stages.pretrain_encoder.lr": [1.0]},
        },
        r"space\.stages\.pretrain_encoder\.lr: changes nothing that tune_hybrid computes",
    ),
    "of a part that is left out": (
        {
            "objective": {"stage": "tune_hybrid"},
            "set": {"stages.tune_hybrid.starts_from.lora": "none"},
            "space": {"lora.r": [4]},
        },
        r"space\.lora\.r: changes nothing that tune_hybrid computes",
    ),
    "a start that is refused": (
        {
            "objective": {"stage": "tune_hybrid"},
            "space": {"stages.tune_hybrid.starts_from": [{}, {"lora": "fresh"}]},
        },
        r"starts_from: \{'lora': 'fresh'\}: .*lora would be drawn and never learn",
    ),
    "of no result": ({"space": {"cluster.workers": [1]}}, r"changes nothing that pretrain_encoder computes"),
    "no value": ({"space": {"encoder.width": []}}, r"space\.encoder\.width\.choice: .*at least 1 item"),
    "no space": ({"space": {}}, r"space: .*at least 1 item"),
    "two kinds": ({"space": {LR: {"uniform": [0, 1], "randint": [0, 1]}}}, r"give a list of values or one of"),
    "turned round": ({"space": {LR: {"uniform": [2, 1]}}}, r"uniform \[2\.0, 1\.0\]: the first must be less"),
    "log of zero": ({"space": {LR: {"loguniform": [0, 1]}}}, r"loguniform \[0\.0, 1\.0\]: must be above 0"),
    "misspelt kind": ({"space": {LR: {"lognormal": [0, 1]}}}, r"unknown key .*did you mean 'loguniform'"),
    "no trials": ({"budget": {"trials": 0}}, r"budget\.trials: .*greater than 0"),
    "no time": ({"budget": {"hours": 0}}, r"budget\.hours: .*greater than 0"),
    "grid above the budget": (
        {
            "algorithm": "grid",
            "space": {"encoder.width": [16, 32], "encoder.heads": [1, 2, 4]},
            "budget": {"trials": 5},
        },
        r"budget\.trials: 5, but the grid has 6 points",
    ),
    "grid of a range": ({"algorithm": "grid", "budget": {}}, r"a grid needs a list of values"),
    "no such metric": ({"objective": {"stage": "pretrain_encoder", "metric": "valid_map"}}, r"metric: .*'valid_auc'"),
    "no such stage": ({"objective": {"stage": "train"}}, r"objective\.stage: .*'train'"),
    "no such algorithm": ({"algorithm": "tp"}, r"algorithm: .*'tpe'"),
    "no such scheduler": ({"scheduler": {"kind": "asah"}}, r"scheduler: .*'asha'"),
    "longer grace than trial": ({"scheduler": {"kind": "asha", "grace": 9}}, r"grace: 9 evaluations, but .* only 3"),
    "real data values": (
        {"space": {"data.threshold": {"uniform": [2, 4]}}},
        r"data is prepared before the first trial",
    ),
    "pbt of a shape": (
        {"scheduler": {"kind": "pbt"}, "algorithm": "random"},
        r"space\.encoder\.width: pbt changes values while a stage trains",
    ),
    "pbt and tpe": ({"scheduler": {"kind": "pbt"}, "space": {LR: [1e-3, 1e-2]}}, r"algorithm: pbt starts from random"),
    "no base": ({"base": "nowhere.yaml"}, r"nowhere\.yaml: no such file"),
    "bad base value": ({"set": {"encoder.width": 0}}, r"set: encoder\.width: .*greater than 0"),
    "name of the store": ({"name": "store"}, r"name: 'store' is the folder of stage results"),
    "hyperband and tpe": (
        {"scheduler": {"kind": "hyperband"}, "algorithm": "tpe"},
        r"algorithm: tpe learns from ended trials, and hyperband must know all trials from the start; use random or",
    ),
    "misspelt key": ({"algoritm": "tpe"}, r"unknown key 'algoritm'; did you mean 'algorithm'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_search_is_one_line(case: str, tmp_path: Path) -> None:
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as refused:
        search(tmp_path, changes)
    assert "\n" not in str(refused.value)


def test_a_key_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: s\n")
    with pytest.raises(InputError, match="base: missing; it has no default"):
        load_search(tmp_path / "s.yaml")


def test_values_on_the_command_line(tmp_path: Path) -> None:
    search(tmp_path)
    found = load_search(tmp_path / "s.yaml", ["budget.trials=3", "set.seed=4"])
    assert (found.trials, found.base.seed) == (3, 4)


def test_the_grid_has_every_point_once(tmp_path: Path) -> None:
    space = {"encoder.width": [16, 32], "encoder.blocks": {"randint": [1, 3]}}
    points = grid(search(tmp_path, {"algorithm": "grid", "space": space, "budget": {}}).config.space)
    assert points == [{"encoder.width": w, "encoder.blocks": b} for w in (16, 32) for b in (1, 2, 3)]


def quality(values: Mapping[str, Any]) -> float:
    """What a trial of these values would reach."""
    return -abs(math.log10(values[LR]) + 3) + values["encoder.width"] / 100


def suggestions(of: Search, answers: int = 99, failing: int | None = None) -> list[dict[str, Any]]:
    """Asked and told one by one, as with one trial at a time."""
    suggester, found = Suggester(of), []
    while (suggested := suggester.suggest(str(len(found)))) != Suggester.FINISHED:
        suggested = suggested[TRIAL]
        assert suggested[NUMBER] == len(found)
        found.append(suggested[VALUES])
        if len(found) <= answers:
            value = math.nan if failing == suggested[NUMBER] else quality(suggested[VALUES])
            suggester.on_trial_complete(str(suggested[NUMBER]), {OBJECTIVE: value})
    return found


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_the_same_answers_give_the_same_suggestions(algorithm: str, tmp_path: Path) -> None:
    of = search(tmp_path, {"algorithm": algorithm, "budget": {"trials": 20}})
    first = suggestions(of)
    assert suggestions(of) == first and len({str(values) for values in first}) == 20
    assert suggestions(search(tmp_path, {"algorithm": algorithm, "budget": {"trials": 20}, "seed": 1})) != first
    assert all(1e-4 <= values[LR] <= 1e-2 and values["encoder.width"] in (16, 32) for values in first)
    assert (suggestions(of, failing=3) == first) == (algorithm == "random")  # TPE listens, random does not


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_what_was_suggested_holds_when_answers_come_in_another_order(algorithm: str, tmp_path: Path) -> None:
    of = search(tmp_path, {"algorithm": algorithm, "budget": {"trials": 12}})
    record = str(tmp_path / "suggestions.jsonl")

    def drawn(count: int, order: int) -> list[Any]:
        """Two at a time; of each pair, the one that ``order`` says ends first."""
        suggester, found = Suggester(of, record), []
        for start in range(0, count, 2):
            pair = [suggester.suggest(str(start + i))[TRIAL] for i in (0, 1)]
            for trial in pair[::order]:
                suggester.on_trial_complete(str(trial[NUMBER]), {OBJECTIVE: quality(trial[VALUES])})
            found += [trial[VALUES] for trial in pair]
        return found

    first = drawn(8, 1)
    again = drawn(12, -1)  # resumed
    assert again[:8] == first
    assert len({str(values) for values in again}) == 12  # and the sampler goes on from there
    assert drawn(12, 1) == again


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_the_first_trial_is_the_base(algorithm: str, tmp_path: Path) -> None:
    base = {LR: 3e-3, "encoder.width": 32}  # width 16 would be another trial, the rate one in a million
    first, second = suggestions(search(tmp_path, {"algorithm": algorithm, "set": base, "budget": {"trials": 2}}))
    assert first == base and second != base


def test_of_a_base_outside_the_space_the_rest_is_kept(tmp_path: Path) -> None:
    first = suggestions(search(tmp_path, {"set": {LR: 3e-3, "encoder.width": 64}, "budget": {"trials": 1}}))[0]
    assert first[LR] == 3e-3 and first["encoder.width"] in (16, 32)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_a_larger_budget_goes_on_from_a_smaller(algorithm: str, tmp_path: Path) -> None:
    small, large = (
        suggestions(search(tmp_path, {"algorithm": algorithm, "budget": {"trials": trials}})) for trials in (8, 16)
    )
    assert large[:8] == small


def test_tpe_learns(tmp_path: Path) -> None:
    found = suggestions(search(tmp_path, {"algorithm": "tpe", "budget": {"trials": 60}}))
    value = [quality(values) for values in found]
    assert sum(value[-20:]) / 20 > sum(value[:10]) / 10 + 0.1


def test_values_that_are_lists_can_be_drawn(tmp_path: Path) -> None:
    space = {"lora.targets": [["q_proj"], ["q_proj", "v_proj"]], "lora.r": [2, 4]}
    of = search(tmp_path, {"objective": {"stage": "tune_lora"}, "space": space, "algorithm": "random"})
    found = suggestions_of_lists(of)
    assert {tuple(values["lora.targets"]) for values in found} == {("q_proj",), ("q_proj", "v_proj")}
    assert of.trial_config(found[0]).lora.targets == tuple(found[0]["lora.targets"])


def test_what_a_stage_starts_from_can_be_drawn(tmp_path: Path) -> None:
    """A trial then trains the stages that its own values need, and a path of any of them is of effect."""
    path, lr = "stages.tune_hybrid.starts_from", "stages.tune_lora.lr"
    starts: list[Any] = [{}, {"lora": "none"}, {"encoder": "fresh"}]
    space = {path: starts, lr: [1e-3, 1e-2], "lora.r": [2, 4]}
    of = search(tmp_path, {"objective": {"stage": "tune_hybrid"}, "space": space, "algorithm": "random"})
    assert all(values[path] in starts for values in suggestions_of_lists(of))
    needed = [of.trial_config({path: start}).stages.lineage(StageName.TUNE_HYBRID)[:-1] for start in starts]
    assert needed == [("pretrain_encoder", "tune_lora"), ("pretrain_encoder",), ("tune_lora",)]
    trials = []
    for number, start in enumerate(starts):
        trials.append(Told(number, {path: start, lr: 1e-3, "lora.r": 2}))
        trials[-1].add({"evaluation": 1, "step": 5, "valid_auc": 0.5, OBJECTIVE: 0.5, "last": True})
    table = Results(of, trials).trials()
    assert list(table[path]) == ["", "lora: none", "encoder: fresh"]
    table.to_parquet(tmp_path / "trials.parquet")


def suggestions_of_lists(of: Search) -> list[dict[str, Any]]:
    suggester = Suggester(of)
    return [suggester.suggest(str(i))[TRIAL][VALUES] for i in range(of.trials)]


def test_a_name_stands_for_a_space_and_not_for_a_budget(tmp_path: Path) -> None:
    mark = search(tmp_path).fingerprint
    assert search(tmp_path, {"budget": {"trials": 50, "hours": 2}, "concurrent": 1}).fingerprint == mark
    for changes in ({"seed": 1}, {"algorithm": "random"}, {"space": {"encoder.width": [16]}}, {"set": {"seed": 3}}):
        assert search(tmp_path, changes).fingerprint != mark


def test_searches_compare_where_only_the_scheduler_differs(tmp_path: Path) -> None:
    mark = comparable(search(tmp_path))
    assert comparable(search(tmp_path, {"scheduler": {"kind": "none"}, "name": "t"})) == mark
    assert comparable(search(tmp_path, {"seed": 1})) != mark


def test_trials_at_once_follow_from_the_cluster(tmp_path: Path) -> None:
    of = search(tmp_path, {"set": {"cluster.workers": 2}})
    assert [concurrent_trials(of, {"CPU": cpus}) for cpus in (2.0, 3.0, 4.0, 100.0)] == [1, 1, 2, 6]
    assert concurrent_trials(search(tmp_path, {"concurrent": 1}), {"CPU": 100.0}) == 1
    both = ClusterConfig(workers=2, cpus_per_worker=3, gpus_per_worker=1)
    assert [capacity(both, {"CPU": 24.0, "GPU": gpus}) for gpus in (1.0, 2.0, 7.0, 99.0)] == [0, 1, 3, 4]


# Results


def test_what_any_trial_reads_is_prepared(tmp_path: Path) -> None:
    assert read_by_trials(search(tmp_path), {}) == set()
    assert read_by_trials(search(tmp_path, {"space": {"encoder.history": ["liked", "rated"]}}), {}) == {Beside.RATED}
    tree: dict[str, Any] = {"objective": {"stage": "tune_hybrid", "metric": "valid_auc"}}
    tree |= {"space": {"mapper.offset": [None, "feature_floor"], "mapper.tokens": [1, 2]}}
    assert read_by_trials(search(tmp_path, tree), {}) == {Beside.PROMPTS, Beside.FLOOR}


def told(number: int, *values: float, width: int = 16, done: bool = False, error: str | None = None) -> Told:
    trial = Told(number, {"encoder.width": width, LR: 10 ** -(2 + number / 8)})
    best = -math.inf
    for i, value in enumerate(values, 1):
        best = max(best, value)
        line = {"evaluation": i, "step": 10 * i, "valid_auc": value, OBJECTIVE: best, "time_this_iter_s": 2.0}
        trial.add(line | {"done": i == len(values), "last": done and i == len(values)})
    if error:
        trial.add({OBJECTIVE: math.nan, "evaluation": len(values) + 1, "error": error, "done": True})
    trial.ended = True
    return trial


def test_a_choice_of_words_and_numbers_is_a_column_of_words(tmp_path: Path) -> None:
    of_both = search(tmp_path, {"space": {"encoder.max_len": ["auto", 10]}})
    trials = [Told(0, {"encoder.max_len": "auto"}), Told(1, {"encoder.max_len": 10})]
    table = Results(of_both, trials).trials()
    table.to_parquet(tmp_path / "t.parquet")
    assert list(pd.read_parquet(tmp_path / "t.parquet")["encoder.max_len"]) == ["auto", "10"]


def test_trials_become_a_table(tmp_path: Path) -> None:
    trials = [told(0, 0.6, 0.7, 0.65, done=True), told(1, 0.5), told(2, 0.9, error="the loss is nan")]
    results = Results(search(tmp_path), trials)
    table = results.trials().set_index("trial")
    assert list(table["status"]) == ["complete", "stopped", "failed"]
    assert list(table["steps"]) == [30, 10, 10] and list(table["planned_steps"]) == [30, 30, 30]
    assert list(table["best_step"])[:2] == [20, 10] and table["reason"][2] == "the loss is nan"
    assert list(table["value"])[:2] == [0.7, 0.5] and math.isnan(table["value"][2])
    assert list(results.evaluations().query("trial == 0")["value"]) == [0.6, 0.7, 0.65]
    assert [trial.number for trial in results.ranked()] == [0, 1]


def test_an_evaluation_that_is_told_twice_counts_once() -> None:
    trial = told(0, 0.6, 0.7)
    trial.add({"evaluation": 1, "step": 10, "valid_auc": 0.1, OBJECTIVE: 0.1})
    assert [result["valid_auc"] for result in trial.results.values()] == [0.6, 0.7]


def test_the_best_configuration_is_an_ordinary_one(tmp_path: Path) -> None:
    results = Results(search(tmp_path), [told(0, 0.6), told(1, 0.7, width=32)])
    best = results.best_config()
    assert best is not None
    (tmp_path / "best.yaml").write_text(as_yaml(best))
    read = load(tmp_path / "best.yaml")
    assert read == best and (read.name, read.encoder.width) == ("s-best", 32)
    assert read.stages[StageName.PRETRAIN_ENCODER].lr == results.told[1].values[LR]
    assert Results(search(tmp_path), [told(0, error="x")]).best_config() is None


def test_importance_finds_what_matters(tmp_path: Path) -> None:
    trials = [told(i, 0.5 + (0.2 if i % 2 else 0.0), width=32 if i % 2 else 16) for i in range(16)]
    importance = Results(search(tmp_path), trials).importance()
    assert set(importance) == {"encoder.width", LR} and sum(importance.values()) == pytest.approx(1)
    assert importance["encoder.width"] > 0.8
    assert Results(search(tmp_path), trials[:4]).importance() == {}


def test_who_goes_on_from_another_stays_itself(tmp_path: Path) -> None:
    """A population's trial gets the other's whole configuration, number and all."""
    results = Results(search(tmp_path), [])
    following = Following(results)
    trials = [
        SimpleNamespace(trial_id=name, config={TRIAL: {NUMBER: i, VALUES: {"encoder.width": 16, LR: 0.01 * (i + 1)}}})
        for i, name in enumerate("ab")
    ]
    for trial in trials:
        following.on_trial_start(0, trials, trial)
    trials[1].config = {TRIAL: {NUMBER: 0, VALUES: {"encoder.width": 16, LR: 0.012}}}
    following.on_trial_result(0, trials, trials[1], {"evaluation": 1, "step": 10, "valid_auc": 0.6, OBJECTIVE: 0.6})
    assert [(t.number, t.values[LR], len(t.results)) for t in results.told] == [(0, 0.01, 0), (1, 0.012, 1)]
