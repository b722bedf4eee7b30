"""Hybrids of next-item systems: lists of their members, joined by a setting that validation sessions choose.

Paper: https://arxiv.org/abs/2402.01339, and its code, as in `rayrec.models.ranking.hybrids`. Members are the run's own:
LLMSeqSim as `ranking` says, and its encoder as the sequential model. As there, NDCG@20 chooses; here on all validation
sessions. Shapes: S sessions, K places of a list.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from rayrec.data import columns as c
from rayrec.data.catalogue import open_sessions, training_counts, training_sessions
from rayrec.data.plan import Ids
from rayrec.metrics import session_metrics
from rayrec.models.ranking import Ranker
from rayrec.models.ranking.hybrids import Flags, by_last_item, popular_items, with_first, without_unpopular
from rayrec.names.tables import ensemble_table
from rayrec.next_item.rankers import lists_of, llmseqsim, similar_by
from rayrec.run import Run
from rayrec.sessions import Index, Sessions
from rayrec.stages import VALID_K, Metric
from rayrec.systems import SystemName

Lists = Callable[[str, Ids], Index]  # a split and its rows -> what the run's encoder ranks best, (S, K)

_LONGER: Final = 5  # times K: the lists that unpopular items are taken from, as in the code


@dataclass(frozen=True)
class _Hybrid:
    setting: str  # what is chosen, by its name
    offered: Sequence[float]
    members: Callable[[str, Ids], Sequence[Index]]  # their lists, whatever the setting
    joined: Callable[[Sessions, Sequence[Index], float], Index]  # prompts, members' lists, setting -> (S, K)


def hybrid_lists(run: Run, system: SystemName, ids: Ids, encoder: Lists) -> tuple[Index, dict[str, float]]:
    """Lists for the test rows ``ids``, (S, K), and by name the setting and, if it was chosen, its NDCG of validation.

    Of settings that are equally good the first is taken.

    Raises:
        InputError: the vectors of names are damaged.
    """
    hybrid = HYBRIDS[system](run, encoder)
    chosen, told = hybrid.offered[0], {}
    if len(hybrid.offered) > 1:
        judged = _judged(run, hybrid)
        chosen = max(judged, key=lambda value: judged[value])
        told = {Metric.NDCG.value: judged[chosen]}
    prompts = open_sessions(run.data.folder, "test").sessions(ids)
    return hybrid.joined(prompts, hybrid.members("test", ids), chosen), {hybrid.setting: chosen} | told


def _judged(run: Run, hybrid: _Hybrid) -> dict[float, float]:
    """Setting -> mean NDCG of the validation sessions."""
    rows = open_sessions(run.data.folder, "valid")
    ids = np.arange(len(rows))
    prompts, held_out = rows.sessions(ids), Sessions.of(rows.frame(ids)[c.ITEM_ID].to_numpy()[:, None])
    members, counts = hybrid.members("valid", ids), training_counts(run.data.folder)
    ndcg = f"ndcg@{VALID_K}"
    return {
        value: float(session_metrics(hybrid.joined(prompts, members, value), held_out, counts, (VALID_K,))[ndcg].mean())
        for value in hybrid.offered
    }


def _embedding_ensemble(run: Run, _: Lists) -> _Hybrid:
    own = run.config.ranking.embedding_ensemble
    rankers = (similar_by(run, own, ensemble_table(run.config)), llmseqsim(run))
    return _Hybrid(
        "rank",
        own.ranks,
        lambda split, ids: [_ranked(run, ranker, split, ids) for ranker in rankers],
        lambda _, members, rank: with_first(members[0], members[1], int(rank)),
    )


def _llmseqsim_popularity(run: Run, _: Lists) -> _Hybrid:
    return _Hybrid(
        "quantile",
        run.config.ranking.llmseqsim_popularity.quantiles,
        lambda split, ids: [_ranked(run, llmseqsim(run), split, ids, _LONGER)],
        lambda _, members, quantile: without_unpopular(members[0], _popular(run, quantile), _places(run)),
    )


def _llmseqsim_sequential(run: Run, encoder: Lists) -> _Hybrid:
    return _Hybrid(
        "quantile",
        run.config.ranking.llmseqsim_sequential.quantiles,
        lambda split, ids: [encoder(split, ids), _ranked(run, llmseqsim(run), split, ids)],
        lambda prompts, members, quantile: by_last_item(prompts, members[0], members[1], _popular(run, quantile)),
    )


def _ranked(run: Run, ranker: Ranker, split: str, ids: Ids, times: int = 1) -> Index:
    return lists_of(run, ranker, split, ids, times * _places(run))


def _places(run: Run) -> int:
    return max(run.config.evaluation.ks)


def _popular(run: Run, quantile: float) -> Flags:
    return popular_items(training_sessions(run.data.folder), run.facts.items, quantile)


HYBRIDS: Final[Mapping[SystemName, Callable[[Run, Lists], _Hybrid]]] = MappingProxyType(
    {
        SystemName.EMBEDDING_ENSEMBLE: _embedding_ensemble,
        SystemName.LLMSEQSIM_POPULARITY: _llmseqsim_popularity,
        SystemName.LLMSEQSIM_SEQUENTIAL: _llmseqsim_sequential,
    }
)
