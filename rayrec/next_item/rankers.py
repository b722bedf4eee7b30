"""The next-item systems that nothing trains: fitted on the training sessions in this process, asked block by block."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa

from rayrec.config.ranking import LLMSeqSimConfig
from rayrec.data.catalogue import lists_table, open_sessions, training_sessions
from rayrec.data.plan import Ids
from rayrec.data.vectors import read_vectors
from rayrec.models.ranking import Decay, MostPopular, Ranker, SessionKNN, Similarity
from rayrec.names.tables import NameTable, nearness_table, seqsim
from rayrec.run import Run
from rayrec.sessions import Index
from rayrec.store import store_folder
from rayrec.systems import SystemName

_BLOCK_SESSIONS: Final = 65_536


def ranked_lists(run: Run, system: SystemName, ids: Ids) -> pa.Table:
    """RANKED and SCORES, which they have none of, for the test rows ``ids``.

    Raises:
        InputError: the vectors of names are damaged.
    """
    return lists_table(lists_of(run, RANKERS[system](run), "test", ids, max(run.config.evaluation.ks)))


def lists_of(run: Run, ranker: Ranker, split: str, ids: Ids, k: int) -> Index:
    """Lists by a ranker, which is fitted on the training sessions, for the rows ``ids``; (rows, k), 0 for none."""
    fitted, rows = _fitted(run, ranker), open_sessions(run.data.folder, split)
    blocks = [ids[start : start + _BLOCK_SESSIONS] for start in range(0, len(ids), _BLOCK_SESSIONS)]
    return np.concatenate([fitted.rank(rows.sessions(block), k) for block in blocks])


def fitted_ranker(run: Run, system: SystemName) -> Ranker:
    """A system that knows the run's training sessions; raises as ``ranked_lists``."""
    return _fitted(run, RANKERS[system](run))


def _fitted(run: Run, ranker: Ranker) -> Ranker:
    seed = None if run.manifest["timed"] else run.config.seed
    return ranker.fit(training_sessions(run.data.folder, seed=seed), run.facts.items)


def _sknn(run: Run) -> Ranker:
    own = run.config.ranking.sknn
    return SessionKNN(neighbours=own.neighbours, sample=own.sample)


def _v_sknn(run: Run) -> Ranker:
    own = run.config.ranking.v_sknn
    return SessionKNN(
        neighbours=own.neighbours,
        sample=own.sample,
        decay=Decay(own.decay),
        similarity=Similarity(own.similarity),
        idf=own.idf,
    )


def llmseqsim(run: Run) -> Ranker:
    """LLMSeqSim as ``ranking.llmseqsim`` says."""
    return similar_by(run, run.config.ranking.llmseqsim, nearness_table(run.config))


def similar_by(run: Run, own: LLMSeqSimConfig, table: NameTable) -> Ranker:
    """LLMSeqSim with these settings and vectors of names.

    Raises:
        InputError: the vectors are damaged.
    """
    return seqsim(own, read_vectors(run.data.table_folder(table, store_folder(run.config))))


RANKERS: Final = MappingProxyType[SystemName, Callable[[Run], Ranker]](
    {
        SystemName.MOST_POPULAR: lambda _: MostPopular(),
        SystemName.SKNN: _sknn,
        SystemName.V_SKNN: _v_sknn,
        SystemName.LLMSEQSIM: llmseqsim,
    }
)
