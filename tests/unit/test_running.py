"""The pairs of an experiment at work: what fails, what waits, and that nothing is made twice."""

import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from clicks import STAGES
from experiments import addressed, experiment, with_system

from rayrec import storage
from rayrec.errors import Abandoned, DivergedError, InputError
from rayrec.experiment import running
from rayrec.experiment.pairs import Pair
from rayrec.experiment.running import Failures, run_pairs
from rayrec.run import Run
from rayrec.stages import Part, StageName
from rayrec.training.launch import StageError
from rayrec.training.parts import is_complete


def test_an_ensemble_runs_what_its_members_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {title: {"system": title.lower()} for title in ("Ensemble", "TALLRec", "SASRec")}
    pairs = [pair for pair in addressed(experiment(tmp_path, {"systems": entries})).values() if pair.seed == 0]
    done: list[str] = []
    asked: list[list[StageName]] = []

    def score(run: Run, systems: list[Any]) -> None:
        done.append(systems[0].value)
        storage.write_text(run.path("predictions", f"{systems[0]}.parquet"), "")

    def fail(run: Run, stages: list[StageName], **_: Any) -> None:
        """The first stage reaches its end, the second does not."""
        asked.append(stages)
        first = pairs[0].jobs[StageName.PRETRAIN_ENCODER]
        storage.write_text(f"{first.part_folder(Part.ENCODER)}/part.json", "{}")
        if StageName.TUNE_LORA in stages:
            raise StageError("out of memory")

    def combine(run: Run, system: Any, members: Mapping[Any, Run]) -> None:
        assert {name: member.folder for name, member in members.items()} == {
            member.system: member.run.folder for member in pairs[0].members
        }
        score(run, [system])

    monkeypatch.setattr(running, "score_systems", score)
    monkeypatch.setattr(running, "score_ensemble", combine)
    monkeypatch.setattr(running, "train_run", fail)
    failures = Failures()
    run_pairs(pairs, failures)
    assert asked == [list(STAGES), [StageName.PRETRAIN_ENCODER]] and done == ["sasrec"]  # a stage fails once for all
    assert failures.pairs == {pair.fingerprint: "out of memory" for pair in pairs[:2]}
    monkeypatch.setattr(running, "train_run", lambda run, stages, label: None)
    run_pairs(pairs, Failures())
    assert done == ["sasrec", "sasrecllm", "tallrec", "ensemble"] and all(pair.is_finished for pair in pairs)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (InputError("stages.tune_hybrid.batch: too many rows"), 6),
        (DivergedError("the loss is nan"), 4),
        (StageError("out of memory"), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_stage_that_failed_is_not_tried_by_the_next_pair(
    error: Exception, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MF and SASRec have encoders of their own, the mapper has SASRec's. What settings alone refuse has not failed."""
    pairs = [pair for pair in addressed(experiment(tmp_path)).values() if pair.jobs]
    asked: list[str] = []

    def fail(run: Run, stages: list[StageName], **_: Any) -> None:
        asked.append(run.folder)
        raise error

    monkeypatch.setattr(running, "train_run", fail)
    failures = Failures()
    run_pairs(pairs, failures)
    assert len(pairs) == 6 and len(asked) == tries
    assert failures.pairs == {pair.fingerprint: str(error) for pair in pairs}


class Pretended:
    """Trains and scores at once, and sees who else does."""

    def __init__(self, pairs: list[Pair], meet: int) -> None:
        runs = [each for pair in pairs for each in (pair, *pair.members)]
        self.jobs = {each.run.folder: each.jobs for each in runs}
        self.trained: Counter[str] = Counter()
        self.scored: Counter[str] = Counter()
        self.at_work: set[str] = set()
        self.most = 0
        self._lock, self._meeting, self._late = threading.Lock(), threading.Barrier(meet), meet

    def train(self, run: Run, stages: list[StageName], *, label: str) -> None:
        missing = [job for job in self.jobs[run.folder].values() if not is_complete(job)]
        mine = {job.fingerprint for job in missing} | {run.folder}
        with self._lock:
            assert self.at_work.isdisjoint(mine), "two make the same"
            self.at_work |= mine
            self.most = max(self.most, sum(name in self.jobs for name in self.at_work))
            self._late -= 1
            meets = self._late >= 0
        if meets:
            self._meeting.wait(20)  # breaks where fewer run at once
        for job in missing:
            self.trained[job.fingerprint] += 1
            for part in job.trains:
                storage.write_text(f"{job.part_folder(part)}/part.json", "{}")
        with self._lock:
            self.at_work -= mine

    def score(self, run: Run, systems: list[Any]) -> None:
        self.scored[run.folder] += 1
        storage.write_text(run.path("predictions", f"{systems[0]}.parquet"), "")

    def combine(self, run: Run, system: Any, members: Mapping[Any, Run]) -> None:
        assert all(storage.exists(member.path("predictions", f"{name}.parquet")) for name, member in members.items())
        self.score(run, [system])


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_pairs_run_side_by_side_and_nothing_is_made_twice(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = list(addressed(experiment(tmp_path, with_system("Pool", {"system": "ensemble"}))).values())
    cluster = Pretended(pairs, at_once)
    for name, stand_in in (("train_run", cluster.train), ("score_systems", cluster.score)):
        monkeypatch.setattr(running, name, stand_in)
    monkeypatch.setattr(running, "score_ensemble", cluster.combine)
    failures = Failures()
    run_pairs(pairs, failures, at_once=at_once)
    assert failures == Failures() and all(pair.is_finished for pair in pairs) and cluster.most == at_once
    jobs = {job.fingerprint for pair in pairs for job in pair.jobs.values()}
    assert cluster.trained == Counter(jobs)
    assert cluster.scored == Counter({each.run.folder for pair in pairs for each in (pair, *pair.members)})
    told = capsys.readouterr().out.splitlines()
    assert sorted(told) == sorted(f"pair {n} of 9  {pair.label}" for n, pair in enumerate(pairs, 1))


def test_a_failure_side_by_side_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MF fails; SASRec's encoder, which the mapper needs as well, fails once for both."""
    pairs = list(addressed(experiment(tmp_path)).values())
    asked: list[str] = []

    def fail(run: Run, stages: list[StageName], *, label: str) -> None:
        if stages:
            asked.append(label)
            raise StageError("out of memory")

    def score(run: Run, systems: list[Any]) -> None:
        storage.write_text(run.path("predictions", f"{systems[0]}.parquet"), "")

    monkeypatch.setattr(running, "train_run", fail)
    monkeypatch.setattr(running, "score_systems", score)
    failures = Failures()
    run_pairs(pairs, failures, at_once=2)
    assert sorted(asked) == [f"{title}, seed {seed}: " for title in ("MF", "SASRec") for seed in (0, 1)]
    assert [pair.is_finished for pair in pairs] == [not pair.jobs for pair in pairs]
    assert failures.pairs == {pair.fingerprint: "out of memory" for pair in pairs if pair.jobs}
    assert capsys.readouterr().out.count("out of memory") == 6


def test_what_cannot_be_looked_at_waits_for_those_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store fails for the second pair while the first one works."""
    pairs = list(addressed(experiment(tmp_path)).values())
    looked, makes = threading.Event(), running._makes
    ended: list[str] = []

    def look(pair: Pair) -> set[str]:
        if pair is pairs[1]:
            looked.set()
            raise InputError("s3://runs: access denied")
        return makes(pair)

    def score(run: Run, systems: list[Any]) -> None:
        assert looked.wait(20)
        ended.append(run.folder)

    monkeypatch.setattr(running, "_makes", look)
    monkeypatch.setattr(running, "train_run", lambda run, stages, label: None)
    monkeypatch.setattr(running, "score_systems", score)
    with pytest.raises(InputError, match="access denied"):
        run_pairs(pairs, Failures(), at_once=2)
    assert ended == [pairs[0].run.folder]


def test_whoever_interrupts_does_not_wait_and_nothing_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pairs at work meet after it, such as a Ray that ends, is no failure of theirs."""
    pairs = list(addressed(experiment(tmp_path)).values())
    interrupted, met = threading.Event(), threading.Event()

    def look(pair: Pair) -> set[str]:
        if pair is pairs[1]:
            raise KeyboardInterrupt
        return {pair.fingerprint}

    def train(run: Run, stages: list[StageName], *, label: str) -> None:
        assert interrupted.wait(20)
        met.set()
        raise StageError("the cluster is gone")

    monkeypatch.setattr(running, "_makes", look)
    monkeypatch.setattr(running, "train_run", train)
    failures, before = Failures(), set(threading.enumerate())
    with pytest.raises(Abandoned):
        run_pairs(pairs, failures, at_once=2)
    assert not met.is_set()
    interrupted.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert met.is_set() and failures.interrupted and failures.pairs == {}
