"""From sessions to the best items that they do not hold: an encoder, a ranker that nothing trains, or a language model.

Shapes: B sessions, V items, K places of a list.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit

from rayrec import storage
from rayrec.batch import Batch
from rayrec.data import columns as c
from rayrec.data.catalogue import training_counts
from rayrec.data.store import open_table
from rayrec.models.ranking import top_k
from rayrec.next_item.rankers import fitted_ranker
from rayrec.ranking import Reranker
from rayrec.run import Run
from rayrec.sessions import Index, Sessions
from rayrec.stages import EncoderKind, Task
from rayrec.systems import SystemName
from rayrec.training.hardware import the_device
from rayrec.training.lists import Lister
from rayrec.training.model import ScoringJob, scoring_model

Lists = tuple[NDArray[np.int64], NDArray[np.float32] | None]  # ids, 0 for an empty place, and scores; (B, K) each
Users = NDArray[np.int32]

_BY_NAME: Final = {EncoderKind.MF, EncoderKind.NEUMF}
_CHUNK: Final = 2**14  # items that are scored at a time, where each is a row


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every actor is told. Plain data."""

    run: Run
    system: SystemName
    k: int  # places of a list
    ranks: ScoringJob | None  # the encoder that ranks the catalogue; None: the system does, and nothing trains it
    reranks: ScoringJob | None  # the language model that puts the encoder's best in order
    candidates: int  # how many of them

    @property
    def by_user(self) -> bool:
        """The encoder knows users by name."""
        return self.ranks is not None and self.run.config.encoder.kind in _BY_NAME

    @property
    def chunk(self) -> int:
        """Sessions that an actor is handed at a time."""
        return self.run.config.evaluation.rows_at_once(with_backbone=self.reranks is not None)


class Recommender(Protocol):
    """Lists for sessions of users, best first."""

    def __call__(self, sessions: Sessions, users: Users, k: int, /) -> Lists: ...


def open_recommender(plan: Plan) -> Recommender:
    """The plan's system, loaded or fitted in this process.

    Raises:
        InputError: a part is damaged, or the backbone or the vectors of names cannot be had.
    """
    torch.set_num_threads(plan.run.config.cluster.cpus_per_worker)
    if plan.ranks is None:
        ranker = fitted_ranker(plan.run, plan.system)
        return lambda sessions, users, k: (ranker.rank(sessions, k), None)
    encoder = _EncoderLists(plan) if not plan.by_user else _NamedLists(plan)
    if plan.reranks is None:
        return encoder
    reranker = Reranker(plan.reranks, plan.run.data.folder)
    return lambda sessions, users, k: reranker.order(sessions, users, encoder(sessions, users, plan.candidates)[0], k)


class _EncoderLists:
    """The catalogue by dot product with what an encoder makes of a session, as in evaluation."""

    def __init__(self, plan: Plan) -> None:
        assert plan.ranks is not None
        self._is_click = plan.run.config.data.task is Task.CLICK
        self._read, device = plan.run.facts.max_len, the_device()
        self._lister = Lister(scoring_model(plan.ranks).to(device), _events(plan.run), plan.run.config, device)

    def __call__(self, sessions: Sessions, users: Users, k: int, /) -> Lists:
        ids_BK, scores_BK = self._lister.rank_table(_rows(sessions.newest(self._read), users), sessions, k)
        if self._is_click:
            return ids_BK, expit(scores_BK)
        ids_BK[sessions.lengths == 0] = 0  # no session that it learned from was empty
        return ids_BK, scores_BK


class _NamedLists:
    """The same for an encoder that knows users by name: its own score of every item, one user after the other."""

    def __init__(self, plan: Plan) -> None:
        assert plan.ranks is not None
        self._device = the_device()
        self._model = scoring_model(plan.ranks).to(self._device)
        self._known_V = torch.from_numpy(np.flatnonzero(_events(plan.run))).to(self._device)
        self._chunks = [self._known_V[low : low + _CHUNK] for low in range(0, len(self._known_V), _CHUNK)]

    @torch.no_grad()
    def __call__(self, sessions: Sessions, users: Users, k: int, /) -> Lists:
        ids_BK, scores_BK = np.zeros((len(sessions), k), np.int64), np.zeros((len(sessions), k), np.float32)
        for row, (user, own) in enumerate(zip(users, sessions.each(), strict=True)):
            logit_V = torch.cat([self._logits(int(user), item_C) for item_C in self._chunks])
            held = torch.tensor(own, dtype=torch.int64, device=self._device)
            logit_V[torch.isin(self._known_V, held)] = -torch.inf
            values, columns = (found[0] for found in top_k(logit_V[None], k))
            is_left = (values > -torch.inf).cpu().numpy()
            places = np.arange(len(is_left))[is_left]
            ids_BK[row, places] = self._known_V[columns].cpu().numpy()[is_left]
            scores_BK[row, places] = values.sigmoid().cpu().numpy()[is_left]
        return ids_BK, scores_BK

    def _logits(self, user: int, item_C: torch.Tensor) -> torch.Tensor:
        nothing_C1 = torch.zeros_like(item_C)[:, None]
        user_C = torch.full_like(item_C, user - c.UNKNOWN_USER)
        return self._model(Batch(user_C, nothing_C1, item_C, nothing_C1[:, 0].float()))  # type: ignore[no-any-return]


def _rows(sessions: Sessions, users: Users) -> pa.Table:
    """The sessions as ``collate`` reads rows; their targets are unknown, and not read."""
    none = np.zeros(len(sessions), np.int32)
    history = pa.ListArray.from_arrays(pa.array(sessions.offsets, pa.int32()), pa.array(sessions.items, pa.int32()))
    return pa.table({c.USER_ID: users, c.ITEM_ID: none, c.LABEL: none, c.HISTORY: history})


def _events(run: Run) -> Index:
    """Of each item in training, by id, shape (V + 1,): what has none is in no list."""
    if run.config.data.task is Task.NEXT_ITEM:
        return training_counts(run.data.folder)
    rated = open_table(storage.join(run.data.folder, "train.parquet"))[c.ITEM_ID].to_numpy()
    return np.bincount(rated, minlength=run.facts.items + 1)
