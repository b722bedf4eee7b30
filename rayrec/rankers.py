"""The next-item systems that nothing trains: fitted on the training sessions in this process, asked block by block."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa

from rayrec.data.catalogue import lists_table, open_sessions, training_sessions
from rayrec.data.plan import Ids
from rayrec.data.vectors import read_vectors
from rayrec.models.ranking import Decay, LLMSeqSim, MostPopular, Nearness, Ranker, SessionKNN, Similarity
from rayrec.name_tables import nearness_table
from rayrec.run import Run
from rayrec.stages import SystemName
from rayrec.store import store_folder

_BLOCK_SESSIONS: Final = 65_536


def ranked_lists(run: Run, system: SystemName, ids: Ids) -> pa.Table:
    """RANKED and SCORES, which they have none of, for the test rows ``ids``.

    Raises:
        InputError: the vectors of names are damaged.
    """
    ranker = fitted_ranker(run, system)
    rows, k = open_sessions(run.data.folder, "test"), max(run.config.evaluation.ks)
    blocks = [ids[start : start + _BLOCK_SESSIONS] for start in range(0, len(ids), _BLOCK_SESSIONS)]
    return lists_table(np.concatenate([ranker.rank(rows.sessions(block), k) for block in blocks]))


def fitted_ranker(run: Run, system: SystemName) -> Ranker:
    """A system that knows the run's training sessions; raises as ``ranked_lists``."""
    seed = None if run.manifest["timed"] else run.config.seed
    return RANKERS[system](run).fit(training_sessions(run.data.folder, seed=seed), run.facts.items)


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


def _llmseqsim(run: Run) -> Ranker:
    own, table = run.config.ranking.llmseqsim, nearness_table(run.config)
    vectors = read_vectors(run.data.table_folder(table, store_folder(run.config)))
    return LLMSeqSim(vectors, None if own.decay == "last" else Decay(own.decay), Nearness(own.nearness))


RANKERS: Final = MappingProxyType[SystemName, Callable[[Run], Ranker]](
    {
        SystemName.MOST_POPULAR: lambda _: MostPopular(),
        SystemName.SKNN: _sknn,
        SystemName.V_SKNN: _v_sknn,
        SystemName.LLMSEQSIM: _llmseqsim,
    }
)
