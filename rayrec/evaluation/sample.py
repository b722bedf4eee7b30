"""The rows that systems are judged on, and what a table's caption says of them."""

from collections.abc import Mapping

import numpy as np

from rayrec.data.plan import Ids, sample_rows
from rayrec.data.rows import OpenRows, RowSource
from rayrec.run import Run
from rayrec.stages import StageName, Stream, Task
from rayrec.systems import SYSTEMS, SystemName

_SAMPLE_SEED = 0  # the sample of test users is part of the protocol, not of the run: every seed is judged on the same


def test_sample(run: Run) -> Ids:
    """Row ids of the test rows that the systems score."""
    settings = run.config.evaluation
    return sample_rows(rows_of(run, "test").user_ids, settings.users, settings.rows_per_user, _SAMPLE_SEED)


def judged_rows(run: Run, system: SystemName, ids: Ids) -> Ids:
    """Those of the test sample ``ids`` that ``system`` scores: all, or, where a language model is asked, some of them.

    Which ones is fixed and seeded.
    """
    ranking, sessions = run.config.ranking, None
    if says_answers(system):
        sessions = ranking.llmseqprompt.sessions
    elif reranks(run, system):
        assert ranking.sasrecllm is not None
        sessions = ranking.sasrecllm.sessions
    if sessions is None:
        return ids
    return ids[sample_rows(rows_of(run, "test").user_ids[ids], sessions, None, _SAMPLE_SEED)]


def describe_sample(run: Run) -> str:
    """The test rows that the systems score, in words, for the caption of every table."""
    ids = test_sample(run)
    rows = rows_of(run, "test")
    users, there = len(np.unique(rows.user_ids[ids])), len(np.unique(rows.user_ids))
    which = "all" if len(ids) == len(rows) else "a fixed, seeded sample:"
    if run.config.data.task is Task.NEXT_ITEM:
        return f"{which} {users:,} of {there:,} test sessions; the same for every system"
    return f"{which} {len(ids):,} of {len(rows):,} test rows, {users:,} of {there:,} users; the same for every system"


def describe_judged(run: Run) -> str:
    """The same, and which of the run's own systems score fewer of them."""
    ids = test_sample(run)
    judged = {title: len(judged_rows(run, system, ids)) for system, title in run.titles.items()}
    return f"{describe_sample(run)}{but_for(judged)}"


def but_for(judged: Mapping[str, int]) -> str:
    """Whose sessions are fewer than the others', in words; ``judged`` has the sessions of each title."""
    fewer = [f"{title} ({count:,} of them)" for title, count in judged.items() if count < max(judged.values())]
    return f" but {', '.join(fewer)}" if fewer else ""


def validation_sample(run: Run, stage: StageName) -> Ids:
    """Row ids of the validation rows that ``stage`` is judged on."""
    settings, seed = run.config.stages[stage], run.config.seed
    return sample_rows(rows_of(run, "valid").user_ids, settings.valid_users, settings.valid_rows_per_user, seed)


def says_answers(system: SystemName) -> bool:
    """It answers in words, from which its lists are made."""
    reads = SYSTEMS[system].reads
    return reads is not None and reads.answers


def reranks(run: Run, system: SystemName) -> bool:
    """It says Yes or No of an encoder's candidates where lists are asked for."""
    reads, task = SYSTEMS[system].reads, run.config.data.task
    return reads is not None and reads.asks(task) is not task


def rows_of(run: Run, split: str) -> OpenRows:
    """A prepared split, opened."""
    return RowSource(run.data.folder, split, Stream.INTERACTIONS, run.facts.max_len).open()
