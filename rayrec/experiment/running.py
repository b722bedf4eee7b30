"""The pairs of an experiment, side by side where the cluster has room; one that fails takes no other's turn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from threading import Thread

from rayrec import storage
from rayrec.errors import Abandoned, DivergedError
from rayrec.evaluation.ensemble import score_ensemble
from rayrec.evaluation.scoring import score_systems
from rayrec.experiment.pairs import Pair
from rayrec.pipeline import train_run
from rayrec.training.launch import StageError
from rayrec.training.parts import is_complete

PAIR = "pair.json"
_REASON = 400  # characters of a reason


@dataclass
class Failures:
    """What a call saw fail."""

    pairs: dict[str, str] = field(default_factory=dict)  # fingerprint -> reason
    stages: dict[str, str] = field(default_factory=dict)  # the same of a stage: who else needs it need not try
    interrupted: bool = False  # from then on, what fails says nothing of a pair


def run_pairs(pairs: Sequence[Pair], failures: Failures, *, at_once: int = 1) -> None:
    """Run the pairs that have no predictions yet, in order, ``at_once`` of them; ray is connected.

    A pair waits while another makes what it needs as well, so that nothing is made twice.
    """
    if at_once == 1:
        for number, pair in enumerate(pairs, 1):
            _try_pair(f"pair {number} of {len(pairs)}", pair, failures, label="")
        return
    try:
        _side_by_side(pairs, failures, at_once)
    except KeyboardInterrupt:
        failures.interrupted = True
        raise Abandoned from None


def _side_by_side(pairs: Sequence[Pair], failures: Failures, at_once: int) -> None:
    """Every pair in a thread of its own; where one cannot even be looked at, those at work come to their end first."""
    waiting = dict(enumerate(pairs, 1))
    at_work: dict[int, set[str]] = {}  # pairs that run, and what they make
    ended: SimpleQueue[int] = SimpleQueue()
    try:
        while waiting or at_work:
            for number, pair in list(waiting.items()):
                if len(at_work) == at_once:
                    break  # before the store is asked for what nobody could begin
                makes = _makes(pair)
                if all(map(makes.isdisjoint, at_work.values())):
                    turn = f"pair {number} of {len(pairs)}"
                    work = partial(_try_pair, turn, waiting.pop(number), failures, label=f"{pair.label}: ")
                    Thread(target=_work, args=(work, number, ended), daemon=True).start()
                    at_work[number] = makes
            del at_work[ended.get()]
    except Exception:
        for _ in at_work:  # after it Ray ends, without which they could not go on
            ended.get()
        raise


def _work(work: "partial[None]", number: int, ended: "SimpleQueue[int]") -> None:
    try:
        work()
    finally:
        ended.put(number)


def _makes(pair: Pair) -> set[str]:
    """Fingerprints of the scores and stages that the pair would leave and that are not there yet."""
    scores = {one.fingerprint for one in (pair, *pair.members) if not one.is_finished}
    return scores | {job.fingerprint for job in pair.jobs.values() if not is_complete(job)} if scores else scores


def _try_pair(turn: str, pair: Pair, failures: Failures, *, label: str) -> None:
    """``label`` begins the lines of one that does not run alone."""
    if pair.is_finished:
        print(f"{turn}  {pair.label}  complete before", flush=True)
        return
    print(f"{turn}  {pair.label}", flush=True)
    try:
        _run_pair(pair, failures, label)
    except Exception as error:  # whatever it is, it is told, and the other pairs go on
        if failures.interrupted:
            return
        reason = _one_line(error)
        failures.pairs[pair.fingerprint] = reason
        print(f"failed  {pair.label}: {reason}", flush=True)


def _run_pair(pair: Pair, failures: Failures, label: str) -> None:
    for job in pair.jobs.values():
        if job.fingerprint in failures.stages:
            raise RuntimeError(failures.stages[job.fingerprint])
    storage.write_text(pair.run.path(PAIR), json.dumps(pair.content, indent=2) + "\n")
    if pair.members:
        for member in sorted(pair.members, key=lambda one: -len(one.jobs)):  # one group of workers for all stages
            if not member.is_finished:
                _run_pair(member, failures, label)
        score_ensemble(pair.run, pair.system, {member.system: member.run for member in pair.members})
        return
    try:
        train_run(pair.run, list(pair.jobs), label=label)
    except (DivergedError, StageError) as error:  # not what a look at the settings refused: no stage has failed then
        missing = next((job for job in pair.jobs.values() if not is_complete(job)), None)
        if missing is not None:
            failures.stages[missing.fingerprint] = _one_line(error)
        raise
    score_systems(pair.run, [pair.system])


def _one_line(error: Exception) -> str:
    """The last line: Ray's messages are whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:_REASON]
