"""Searches as a person runs them: to the end, killed and gone on with, with stages shared between trials."""

import getpass
import json
import time
from pathlib import Path
from typing import Any

import heads
import pandas as pd
import processes
import pytest
import yaml

pytestmark = pytest.mark.timeout(1800)
# Ray's own, detached, one each a cluster.
OF_THE_CLUSTER = {"_StatsActor", "_AutoscalingCoordinatorActor", "_UsageCollectionActor"}
LR = "stages.pretrain_encoder.lr"
ENCODER: dict[str, Any] = {
    "name": "search",
    "base": str(processes.ROOT / "configs" / "smoke.yaml"),
    "set": {"cluster.workers": 1, "stages.pretrain_encoder.epochs": 9},
    "objective": {"stage": "pretrain_encoder"},
    "space": {"encoder.width": [16, 32], LR: {"loguniform": [1e-4, 1e-2]}},
    "algorithm": "tpe",
    "scheduler": {"kind": "asha", "grace": 1, "factor": 3},
    "budget": {"trials": 3},
    "concurrent": 1,
}
MAPPER: dict[str, Any] = {
    **ENCODER,
    "set": {"cluster.workers": 1},
    "objective": {"stage": "tune_hybrid"},
    "space": {"mapper.expansion": [2, 3, 4], "mapper.tokens": [1, 2]},
    "algorithm": "grid",
    "scheduler": {"kind": "none"},
    "budget": {},
    "concurrent": 2,
}

NEXT_ITEMS: dict[str, Any] = {
    **ENCODER,
    "base": str(processes.ROOT / "configs" / "smoke_next_item.yaml"),
    "set": {"cluster.workers": 1, "stages.pretrain_encoder.epochs": 3},
    "objective": {"stage": "pretrain_encoder", "metric": "valid_ndcg"},
    "space": {"encoder.initial": [None, {"names": "pca"}], LR: [1e-3, 1e-2]},
    "algorithm": "grid",
    "scheduler": {"kind": "none"},
    "budget": {},
    "concurrent": 2,
}


class Searching:
    """A search file in a folder of its own, and the command that runs it."""

    def __init__(self, folder: Path, env: dict[str, str], tree: dict[str, Any], **changes: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tree = tree | changes | {"set": {**tree["set"], "storage": str(folder), **changes.get("set", {})}}
        (folder / "search.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        self.root, self.env = folder, env
        self.folder = folder / "search"
        self.command = processes.job("search", "--config", str(folder / "search.yaml"))

    def run(self) -> processes.Finished:
        return processes.run(self.command, self.env, self.root / "log").checked()

    def table(self, name: str = "trials") -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet").drop(columns="seconds", errors="ignore")

    def logs(self, stage: str) -> list[list[dict[str, Any]]]:
        """``progress.jsonl`` of everything that was trained of a stage."""
        found = sorted((self.root / "store" / stage).glob("*/progress.jsonl"))
        return [[json.loads(line) for line in path.read_text().splitlines()] for path in found]


def kill_drivers(searching: Searching, moments: list[int]) -> None:
    """kill -9 of the driver once so many evaluations are on record; then the same command to its end."""
    for count in moments:
        with processes.running(searching.command, searching.env, searching.root / "log") as started:
            processes.wait_until(
                lambda count=count: (
                    started.ended  # type: ignore[misc]
                    or sum("valid_auc" in line for log in searching.logs("pretrain_encoder") for line in log) >= count
                ),
                f"{count} evaluations",
            )
            assert not started.ended, started.output()
            family = started.family()
            started.kill()
            processes.end_all(family, grace=5)
    (searching.folder / "suggestions.jsonl.1234abcd.partial").touch()  # killed while it wrote
    searching.run()


@pytest.fixture(scope="module")
def whole(job_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Searching:
    """A search of the encoder whose driver was killed in its second trial."""
    searching = Searching(tmp_path_factory.mktemp("whole"), job_env, ENCODER)
    began = time.monotonic()
    kill_drivers(searching, [10])
    print(f"search: {time.monotonic() - began:.0f} s")
    return searching


def test_it_leaves_what_is_promised(whole: Searching) -> None:
    trials = whole.table()
    assert list(trials["trial"]) == [0, 1, 2] and set(trials["status"]) <= {"complete", "stopped"}
    assert (trials["steps"] <= trials["planned_steps"]).all() and (trials["planned_steps"] == 90).all()
    assert (trials["status"] == "stopped").any() and trials["steps"].sum() < 270
    names = {path.relative_to(whole.folder).as_posix() for path in whole.folder.rglob("*") if path.is_file()}
    assert {"search.yaml", "search.json", "trials.parquet", "best.yaml", "report/index.html"} <= names
    assert [path for path in whole.root.rglob("*") if ".partial" in path.name or path.name == "tune"] == []
    best = trials.sort_values("value", ascending=False).iloc[0]
    made = yaml.safe_load((whole.folder / "best.yaml").read_text())
    assert made["encoder"]["width"] == best["encoder.width"] and made["stages"]["pretrain_encoder"]["lr"] == best[LR]


def test_a_trial_trains_no_further_than_it_was_asked(whole: Searching) -> None:
    """The steps on record are those that the table counts, once each: no trial ran on behind Tune's back or again."""
    for log in whole.logs("pretrain_encoder"):
        assert [line["step"] for line in log] == list(range(1, len(log) + 1))
    assert sorted(len(log) for log in whole.logs("pretrain_encoder")) == sorted(whole.table()["steps"])


def test_the_values_are_those_of_the_logs(whole: Searching) -> None:
    logs = whole.logs("pretrain_encoder")
    told = whole.table("evaluations")
    curves = sorted([line["valid_auc"] for line in log if "valid_auc" in line] for log in logs)
    assert curves == sorted(rows["value"].tolist() for _, rows in told.groupby("trial"))


def test_again_there_is_nothing_to_do(whole: Searching) -> None:
    nowhere = whole.env | {"RAY_ADDRESS": "127.0.0.1:1"}  # where connecting would fail
    assert "all trials are complete" in processes.run(whole.command, nowhere, whole.root / "again").checked().out


def test_a_name_stands_for_one_space(whole: Searching) -> None:
    command = [*whole.command, "--set", "seed=5"]
    refused = processes.run(command, whole.env, whole.root / "refused")
    assert refused.code == 2 and len(refused.err.splitlines()) == 1
    assert "already holds another configuration" in refused.err and "seed: 0 -> 5" in refused.err


@pytest.mark.full
def test_next_items_are_searched_by_their_lists(job_env: dict[str, str], tmp_path: Path) -> None:
    """Two trials start from the same vectors of names, which are written once; the best of each log is the value."""
    searching = Searching(tmp_path, job_env, NEXT_ITEMS)
    searching.run()
    best = sorted(max(line.get("valid_ndcg", 0.0) for line in log) for log in searching.logs("pretrain_encoder"))
    trials = searching.table()
    assert best == sorted(trials["value"]) and best[0] < best[-1]
    made = yaml.safe_load((searching.folder / "best.yaml").read_text())
    values = trials.sort_values("value", ascending=False).iloc[0]
    assert made["stages"]["pretrain_encoder"]["lr"] == values[LR]


@pytest.mark.full
@pytest.mark.parametrize("algorithm", ["random", "grid", "tpe"])
def test_kills_change_nothing(algorithm: str, job_env: dict[str, str], tmp_path: Path) -> None:
    """With one trial at a time: the same suggestions, the same decisions, the same values."""
    changes: dict[str, Any] = {"algorithm": algorithm}
    if algorithm == "grid":
        changes |= {"space": {"encoder.width": [16, 32], LR: [1e-3, 1e-2]}, "budget": {}}
    calm = Searching(tmp_path / "calm", job_env, ENCODER, **changes)
    calm.run()
    killed = Searching(tmp_path / "killed", job_env, ENCODER, **changes)
    kill_drivers(killed, [2, 9, 11])
    pd.testing.assert_frame_equal(killed.table(), calm.table())
    pd.testing.assert_frame_equal(killed.table("evaluations"), calm.table("evaluations"))


@pytest.mark.full
@pytest.mark.parametrize("concurrent", [1, 2])
def test_what_trials_share_is_trained_once(concurrent: int, job_env: dict[str, str], tmp_path: Path) -> None:
    """Six mappers over one encoder and one LoRA, the driver killed on the way."""
    searching = Searching(tmp_path, job_env, MAPPER, concurrent=concurrent)
    with processes.running(searching.command, searching.env, tmp_path / "log") as started:
        processes.wait_until(
            lambda: started.ended or bool(list((tmp_path / "store" / "tune_lora").glob("*/progress.jsonl"))),
            "the LoRA stage",
        )
        family = started.family()
        started.kill()
        processes.end_all(family, grace=5)
    searching.run()
    assert len(searching.logs("tune_hybrid")) == 6 and list(searching.table()["status"]) == ["complete"] * 6
    for stage, steps in (("pretrain_encoder", 30), ("tune_lora", 10)):
        (log,) = searching.logs(stage)
        assert [line["step"] for line in log] == list(range(1, steps + 1))


@pytest.mark.full
def test_failing_trials_do_not_stop_a_search(job_env: dict[str, str], tmp_path: Path) -> None:
    """A rate so high that the loss is no number any more: reported with its reason."""
    space = {LR: [1e-3, 1e30, 2e-3]}
    searching = Searching(tmp_path, job_env, ENCODER, space=space, algorithm="grid", budget={})
    searching.run()
    trials = searching.table()
    assert list(trials["status"])[1] == "failed" and "use a lower rate" in trials["reason"][1]
    assert "failed" not in [trials["status"][0], trials["status"][2]]


@pytest.mark.full
def test_twenty_trials_leave_nothing_behind(job_env: dict[str, str], tmp_path: Path) -> None:
    """Early stops, failures and a lost worker, on a cluster that outlives the search."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with heads.started(job_env | {"TMPDIR": str(temporary)}, tmp_path / "head") as cluster:
        clusters, torchs = set(temporary.iterdir()), temporary / f"torchinductor_{getpass.getuser()}"  # not ours
        space = {"encoder.width": [8, 16], LR: [*(1e-4 * 2**i for i in range(8)), 1e30, 1e31]}
        env = cluster.env | {"RAY_ADDRESS": cluster.address, "TMPDIR": str(temporary)}
        searching = Searching(tmp_path, env, ENCODER, space=space, algorithm="grid", budget={}, concurrent=2)
        with processes.running(searching.command, env, tmp_path / "log") as search:
            processes.wait_until(lambda: search.ended or len(searching.logs("pretrain_encoder")) >= 3, "three trials")
            processes.wait_until(lambda: search.ended or bool(cluster.head.workers()), "a worker")
            for worker in cluster.head.workers():
                worker.kill()
            search.wait(2 * processes.PATIENCE).checked()
        trials = searching.table()
        assert len(trials) == 20
        assert {status: int((trials["status"] == status).sum()) for status in ("failed", "interrupted")} == {
            "failed": 4,
            "interrupted": 0,
        }
        assert (trials["status"] == "stopped").any()
        groups = cluster.listed(tmp_path / "groups", "placement-groups")
        assert len(groups) >= 20 and {group["state"] for group in groups} == {"REMOVED"}
        actors = cluster.listed(tmp_path / "actors", "actors")
        assert {actor["class_name"] for actor in actors if actor["state"] != "DEAD"} <= OF_THE_CLUSTER
        assert set(temporary.iterdir()) - clusters <= {torchs}
        assert [path for path in tmp_path.rglob("*") if ".partial" in path.name or path.name == "tune"] == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("scheduler", "count"),
    [
        ({"kind": "hyperband"}, 6),  # three in the first bracket, which stops none, and three in the second
        ({"kind": "median", "at_least": 2}, 4),
        ({"kind": "pbt", "every": 3, "quantile": 0.5}, 4),
    ],
    ids=["hyperband", "median", "pbt"],
)
def test_schedulers_that_pause_compare_and_copy(
    scheduler: dict[str, Any], count: int, job_env: dict[str, str], tmp_path: Path
) -> None:
    """Each comes to its end, spends no step that the table does not count, and does what its name says."""
    changes: dict[str, Any] = {"algorithm": "random", "concurrent": 2, "scheduler": scheduler}
    changes["budget"] = {"trials": count}
    searching = Searching(tmp_path, job_env, ENCODER, space={LR: {"loguniform": [1e-6, 1e-2]}}, **changes)
    searching.run()
    trials, told = searching.table(), searching.table("evaluations")
    assert len(trials) == count and set(trials["status"]) <= {"complete", "stopped"}
    logs = searching.logs("pretrain_encoder")
    assert all([line["step"] for line in log] == sorted({line["step"] for line in log}) for log in logs)
    if scheduler["kind"] == "pbt":  # nobody is stopped; the worse half goes on from the better half's state
        assert set(trials["status"]) == {"complete"} and len(logs) > 4
        starts = sorted(log[0]["step"] for log in logs)
        assert starts[:4] == [1] * 4 and all(start % 30 == 1 for start in starts)
    else:
        assert (trials["status"] == "stopped").any() and (trials["status"] == "complete").any()
        assert sorted(len(log) for log in logs) == sorted(trials["steps"])
    assert told.groupby("trial")["step"].max().tolist() == trials["steps"].tolist()
