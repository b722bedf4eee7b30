"""LLMSeqSim: items ranked by how near they are to a session, both known by embeddings of item names alone.

Paper: https://arxiv.org/abs/2402.01339. Shapes: S sessions, E events, I items, D width.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from rayrec.errors import InputError
from rayrec.models.ranking.decay import Decay
from rayrec.models.ranking.topk import rank
from rayrec.models.reductions import Rows, unit_length
from rayrec.sessions import Sessions
from rayrec.stages import Name


class Nearness(Name):
    """What an item and a session are compared by."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"  # 1 / (1 + distance)


class LLMSeqSim:
    """A ranker that learns nothing: the embeddings are all it knows.

    An item without a name (a row of zeros) is in no list, and adds nothing to a session; one of nothing else has an
    empty list. The paper's code lets such items compete by a dot product or distance of zeros.
    """

    def __init__(self, embeddings_ID: Rows, decay: Decay | None, nearness: Nearness = Nearness.COSINE) -> None:
        """Row i - 1 of ``embeddings`` is item i; a session is the mean of its items by ``decay``, None: its last."""
        self._embeddings_ID, self._decay = embeddings_ID, decay
        self._compared = torch.from_numpy(_compared(embeddings_ID, nearness))
        self._named_I = torch.from_numpy(embeddings_ID.any(axis=1))

    def fit(self, train: Sessions, items: int) -> "LLMSeqSim":
        """Nothing but a check.

        Raises:
            InputError: the embeddings are of another catalogue.
        """
        if items != len(self._embeddings_ID):
            raise InputError(f"name embeddings of {len(self._embeddings_ID)} items for a catalogue of {items}")
        return self

    def rank(self, prompts: Sessions, k: int) -> npt.NDArray[np.int64]:
        """As ``Ranker.rank``. The order is that of the nearness, which itself is never computed.

        Raises:
            ValueError: an id is not in the catalogue.
        """
        vectors_SD = session_vectors(prompts, self._embeddings_ID, self._decay)
        known_S = vectors_SD.any(axis=1)
        ones = np.ones((len(prompts), self._compared.shape[1] - vectors_SD.shape[1]), np.float32)
        asked = torch.from_numpy(np.hstack([vectors_SD, ones]))
        lists = rank(asked, self._compared, k, prompts=prompts, known_V=self._named_I).numpy()
        lists[~known_S] = 0
        return lists


def session_vectors(sessions: Sessions, embeddings_ID: Rows, decay: Decay | None) -> Rows:
    """The mean of each session's items weighted by ``decay``, None: its last item; (S, D), zero for an empty session.

    Raises:
        ValueError: an id has no row.
    """
    sessions.require(len(embeddings_ID))
    weight_E = decay.weights(sessions) if decay else _last(sessions)
    total_S = np.bincount(sessions.owners, weight_E, minlength=len(sessions))
    share_E = (weight_E / total_S[sessions.owners]).astype(np.float32)
    mixing_SI = csr_array((share_E, sessions.items - 1, sessions.offsets), (len(sessions), len(embeddings_ID)))
    vectors_SD: Rows = mixing_SI @ embeddings_ID
    return vectors_SD


def _last(sessions: Sessions) -> npt.NDArray[np.float64]:
    """1 for the newest event of each session, 0 for the others; shape (E,)."""
    weight_E = np.zeros(len(sessions.items))
    weight_E[sessions.offsets[1:][sessions.lengths > 0] - 1] = 1
    return weight_E


def _compared(embeddings_ID: Rows, nearness: Nearness) -> Rows:
    """Rows whose dot products with a session's vector order items as ``nearness`` does.

    The length of a session's vector changes no order by cosine. By distance |s - x| the order is that of
    s.x - |x|^2 / 2, the dot product of (s, 1) and (x, -|x|^2 / 2).
    """
    match nearness:
        case Nearness.COSINE:
            return unit_length(embeddings_ID)
        case Nearness.DOT:
            return embeddings_ID
        case Nearness.EUCLIDEAN:
            return np.hstack([embeddings_ID, -(embeddings_ID**2).sum(axis=1, keepdims=True) / 2])
