"""Scores of rows, or lists for them: one pool of Ray Data actors goes through the systems, and each system's file comes
out as soon as its last row is done, so that an interrupted evaluation goes on with the system it was at.
"""

import io
import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec import storage
from rayrec.actors import answers
from rayrec.data import columns as c
from rayrec.data.beside import read_beside
from rayrec.data.catalogue import lists_table
from rayrec.data.collate import padded
from rayrec.data.plan import Ids, scoring_batches
from rayrec.data.rows import RowSource
from rayrec.errors import InputError
from rayrec.evaluation.predictions import choice_path, predictions_path, write_lists, write_scores
from rayrec.evaluation.sample import judged_rows, reranks, says_answers, test_sample
from rayrec.evaluation.scorer import ASKED, BATCHES, SYSTEM, Scorer, ScoringTask
from rayrec.floors import floor_scores
from rayrec.next_item.hybrids import HYBRIDS, hybrid_lists
from rayrec.next_item.rankers import ranked_lists
from rayrec.next_item.seqprompt import answered_lists
from rayrec.run import Run
from rayrec.sessions import Index
from rayrec.stages import Part, Stream, Task
from rayrec.systems import SYSTEMS, SystemName, SystemSpec
from rayrec.training.ahead import Ahead
from rayrec.training.evaluate import Scores
from rayrec.training.model import ScoringJob

_CALL_BATCHES = 4  # forward passes of one actor call


def score_systems(run: Run, systems: Sequence[SystemName]) -> None:
    """Score the test sample with every one of ``systems`` that has no predictions yet; ray is connected.

    Raises:
        InputError: a stage that a system needs has not run.
    """
    open_systems = [system for system in systems if not storage.exists(predictions_path(run, system))]
    ids = test_sample(run)
    hybrids = [system for system in open_systems if system in HYBRIDS]
    alone = [system for system in open_systems if SYSTEMS[system].reads is None and system not in hybrids]
    answering = [system for system in open_systems if says_answers(system)]
    neural = [s for s in systems if SYSTEMS[s].reads is not None and s not in HYBRIDS and not says_answers(s)]
    own = {system: judged_rows(run, system, ids) for system in (*neural, *answering)}
    with _while_others_score(run, _written_alone(run, alone, ids)):
        for system, found in _judged(run, {system: own[system] for system in neural}, "test", asked=open_systems):
            if run.config.data.task is Task.NEXT_ITEM:
                write_lists(run, predictions_path(run, system), own[system], found)
            else:
                write_scores(run, "test", predictions_path(run, system), own[system], found[c.SCORE].to_numpy())
    for system in hybrids:
        lists, chosen = hybrid_lists(run, system, ids, partial(_encoder_lists, run))
        storage.write_text(choice_path(run, system), json.dumps(chosen, indent=2) + "\n")
        write_lists(run, predictions_path(run, system), ids, lists_table(lists))
    for system in answering:
        _check_trained(run, SYSTEMS[system])
        write_lists(run, predictions_path(run, system), own[system], answered_lists(run, own[system]))


def _written_alone(run: Run, systems: Iterable[SystemName], ids: Ids) -> Iterator[SystemName]:
    """The systems without a neural model, each as soon as its file is there."""
    for system in systems:
        if run.config.data.task is Task.NEXT_ITEM:
            write_lists(run, predictions_path(run, system), ids, ranked_lists(run, system, ids))
        else:
            write_scores(run, "test", predictions_path(run, system), ids, floor_scores(system, run.data.folder, ids))
        yield system


@contextmanager
def _while_others_score(run: Run, written: Iterator[SystemName]) -> Iterator[None]:
    """Floors of clicks take one core for less time than actors take to start; lists take memory, and come first."""
    if run.config.data.task is Task.NEXT_ITEM:
        deque(written, maxlen=0)
        yield
        return
    with closing(Ahead(written, depth=len(SystemName))) as ahead:
        yield
        deque(ahead, maxlen=0)  # raises what a floor raised


def _encoder_lists(run: Run, split: str, ids: Ids) -> Index:
    """What the run's encoder ranks best for the rows ``ids``; of the test sample it may have said so before."""
    path = predictions_path(run, SystemName.SASREC)
    if split == "test" and storage.exists(path):
        found = pq.read_table(io.BytesIO(storage.read_bytes(path)))
    else:
        ((_, found),) = _judged(run, {SystemName.SASREC: ids}, split)
    lists, _ = padded(found[c.RANKED])
    return np.pad(lists, ((0, 0), (0, max(run.config.evaluation.ks) - lists.shape[1])))


def score_split(run: Run, systems: Sequence[SystemName], split: str, ids: Ids) -> Iterator[tuple[SystemName, Scores]]:
    """Each system and its scores of the rows ``ids`` of a split, shape (len(ids),), one system after the other.

    Raises:
        InputError: a stage that a system needs has not run.
    """
    for system, found in _judged(run, dict.fromkeys(systems, ids), split):
        yield system, found[c.SCORE].to_numpy()


def _judged(
    run: Run, rows: Mapping[SystemName, Ids], split: str, *, asked: Collection[SystemName] | None = None
) -> Iterator[tuple[SystemName, pa.Table]]:
    """Each system and what it says of its ``rows``: SCORE, or RANKED and SCORES.

    Who goes with whom is decided by all of ``rows``, so that an evaluation that goes on with those that are still
    ``asked`` finds the same bits.
    """
    asked = rows.keys() if asked is None else asked
    if not rows.keys() & set(asked):
        return
    tasks = {system: _task(run, system, split) for system in rows}
    passes = [systems for systems in _passes(run, tasks) if not set(asked).isdisjoint(systems)]
    judged = answers(_calls(run, passes, tasks, rows), Scorer, (tasks,), run.config.cluster)
    for names, tables in groupby(judged, key=lambda table: table[SYSTEM].unique().to_pylist()):  # they come in order
        both = pa.concat_tables(tables).sort_by(c.ROW)
        for system in map(SystemName, names):
            found = both.filter(pc.equal(both[SYSTEM], system.value))
            assert np.array_equal(found[c.ROW].to_numpy(), rows[system])
            if system in asked:
                yield system, found


def _passes(run: Run, tasks: Mapping[SystemName, ScoringTask]) -> list[tuple[SystemName, ...]]:
    """Systems in the order of their passes; a language model alone goes along with the model that it is a part of."""
    lora = {name: task.job.parts.get(Part.LORA) for name, task in tasks.items()}
    reading = {
        stream: [name for name, task in tasks.items() if task.source.stream is stream and run.config.fast.split_prompts]
        for stream in (Stream.TEXT_PROMPTS, Stream.HYBRID_PROMPTS)
    }
    alone = {lora[name]: name for name in reading[Stream.TEXT_PROMPTS]}
    within = {name: alone[lora[name]] for name in reading[Stream.HYBRID_PROMPTS] if lora[name] in alone}
    return [(within[name], name) if name in within else (name,) for name in tasks if name not in within.values()]


def _task(run: Run, system: SystemName, split: str) -> ScoringTask:
    spec, max_len = SYSTEMS[system], run.facts.max_len
    assert spec.reads is not None
    if reranks(run, system):  # the rows as the encoder reads them; prompts are of what it finds
        source = RowSource(run.data.folder, split, Stream.INTERACTIONS, max_len)
        return ScoringTask(scoring_job(run, spec), source, scoring_job(run, SYSTEMS[SystemName.SASREC]))
    beside = read_beside(run.config, spec.reads)
    return ScoringTask(scoring_job(run, spec), RowSource(run.data.folder, split, spec.reads, max_len, beside))


def scoring_job(run: Run, spec: SystemSpec) -> ScoringJob:
    """A neural system with the parts that the run trained for it.

    Raises:
        InputError: the stage that it needs has not run.
    """
    assert spec.reads is not None
    _check_trained(run, spec)
    folders: dict[Part, str] = {}
    if spec.after is not None:
        folders = {part: run.part_folder(spec.after, part) for part in run.config.stages.trained(spec.after)}
        if spec.parts - folders.keys():  # what the stage started from
            folders = dict(run.stage_jobs()[spec.after].origins) | folders
    return ScoringJob(
        config=run.config,
        facts=run.facts,
        data=run.data.folder,
        parts={part: folders[part] for part in spec.parts & folders.keys()},  # a stage may go without one
        uses_backbone=spec.reads.uses_backbone,
    )


def _check_trained(run: Run, spec: SystemSpec) -> None:
    if spec.after is not None and not run.holds(spec.after):
        raise InputError(f"stage {spec.after} has not run; run jobs/train_stage.py {spec.after} first")


def _calls(
    run: Run,
    passes: Sequence[tuple[SystemName, ...]],
    tasks: Mapping[SystemName, ScoringTask],
    rows: Mapping[SystemName, Ids],
) -> list[dict[str, Any]]:
    """The work of every actor call: whom it asks and some batches, or one of what is a forward pass a row."""
    calls: list[dict[str, Any]] = []
    for systems in passes:
        task = tasks[systems[-1]]
        batch = run.config.evaluation.rows_at_once(with_backbone=task.job.uses_backbone)
        opened = task.source.open()
        # The longest come first: an actor that is done waits for the other's last call, which then is a short one.
        batches = scoring_batches(rows[systems[-1]], opened.lengths, batch, opened.shared)[::-1]
        size = _CALL_BATCHES if task.finds is None else 1
        for i in range(0, len(batches), size):
            of_call = [ids.tolist() for ids in batches[i : i + size]]
            calls.append({ASKED: [system.value for system in systems], BATCHES: of_call})
    return calls
