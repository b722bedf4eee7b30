"""Lists out of a whole catalogue: against the bare product of vectors, and against the way RecBole evaluates.

Shapes: S sessions, V items, D width, K places of a list, L positions of a history.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayrec.data.collate import Cut, collate
from rayrec.data.plan import scoring_batches
from rayrec.data.rows import OpenRows
from rayrec.models.encoder import SequenceEncoder
from rayrec.models.ranking import rank
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.sessions import Index, Sessions
from rayrec.stages import VALID_K, Metric
from rayrec.training.evaluate import ListValidator
from rayrec.training.hardware import the_device
from rayrec.training.job import StageJob

_MEAN_EVENTS = 9  # of a session that is generated: as many as Amazon Beauty's have
_AT_ONCE = 512  # sessions of the bare product: all at once, memory takes longer than the product
_RECBOLE_BATCH = 4096  # users of RecBole's `eval_batch_size` by default
_TOLERANCE = 1e-3  # of a mean over sessions: products of other sizes round otherwise, and neighbours may change places


@dataclass(frozen=True)
class DrawnSessions:
    """Vectors without meaning, and what each session holds."""

    users_SD: Tensor
    items_VD: Tensor
    held: Sessions

    @classmethod
    def draw(cls, sessions: int, items: int, width: int) -> "DrawnSessions":
        random = np.random.default_rng(0)
        offsets = np.append(0, np.cumsum(1 + random.poisson(_MEAN_EVENTS - 1, sessions)))
        held = Sessions(random.integers(1, items + 1, offsets[-1]), offsets)
        vectors = (torch.from_numpy(random.normal(size=(rows, width)).astype(np.float32)) for rows in (sessions, items))
        users_SD, items_VD = (each.to(the_device()) for each in vectors)
        return cls(users_SD, items_VD, held)

    def ours(self, number: int) -> int:
        """Without what a session holds, equal scores by lower id."""
        return len(rank(self.users_SD, self.items_VD, VALID_K, prompts=self.held).cpu())

    def bare(self, number: int) -> int:
        """Nothing but the product and its largest."""
        done = 0
        for start in range(0, len(self.users_SD), _AT_ONCE):
            scores_BV = self.users_SD[start : start + _AT_ONCE] @ self.items_VD.T
            done += len(scores_BV.topk(VALID_K).indices.cpu())
        return done


class CatalogueEvaluation:
    """Test rows ranked and judged by an encoder, in our way and in RecBole's; what both find is compared too."""

    def __init__(self, job: StageJob, model: SASRecLLM, counts: Index) -> None:
        """``counts`` are each item's events in training, by id."""
        self.rows: OpenRows = job.rows("test").open()
        self.model, self.device = model.to(the_device()), the_device()
        batches = scoring_batches(np.arange(len(self.rows)), self.rows.lengths, job.scoring_batch)
        self.validator = ListValidator(self.rows, batches, job.config, counts)
        self.recbole = RecBoleEvaluation(self.rows, model, job, torch.from_numpy(counts).to(self.device) == 0)
        self.found: Mapping[str, float] = {}

    def ours(self, number: int) -> int:
        """As validation does after every epoch."""
        self.found = self.validator.evaluate(self.model, self.device)
        return len(self.rows)

    def theirs(self, number: int) -> int:
        self.model.set_mode(())
        expected = self.recbole.evaluate()
        for metric, name in ((Metric.NDCG, "ndcg"), (Metric.HR, "hit")):
            if abs(self.found[metric.value] - expected[name]) > _TOLERANCE:
                raise ArithmeticError(f"{metric.shown} is {self.found[metric.value]} here, {expected[name]} by RecBole")
        return len(self.rows)


class RecBoleEvaluation:
    """RecBole's ``Trainer.evaluate`` where every item is scored, with an encoder of ours in its model's place.

    https://github.com/RUCAIBox/RecBole: recbole/trainer/trainer.py (``_full_sort_batch_eval``), evaluator/collector.py,
    evaluator/metrics.py. Histories lie ready as tensors, padded to the longest that is read; the encoder computes the
    states of all positions; a batch has scores of every item, -inf for padding and what its users have, ``topk``, and
    a matrix of the scores' size with a 1 for each held-out item, from which hits are gathered. RecBole takes what users
    have out for its models of users alone; here it is, so that both sides have the same lists.
    """

    def __init__(self, rows: OpenRows, model: SASRecLLM, job: StageJob, left_out_V1: Tensor) -> None:
        """``left_out``: ids that no list holds; 0, the padding, among them."""
        assert isinstance(model.encoder, SequenceEncoder)
        self.encoder, self.left_out_V1 = model.encoder, left_out_V1
        ids = np.arange(len(rows))
        batch = collate(rows.fetch(ids), job.config.mapper.tokens, Cut.NOWHERE).to(left_out_V1.device)
        self.history_SL = torch.nn.functional.pad(batch.history_BL, (job.facts.max_len - batch.history_BL.shape[1], 0))
        self.held_out_S, self.held = batch.item_B, rows.sessions(ids)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        hits_SK = np.concatenate(
            [self._hits(start, start + _RECBOLE_BATCH) for start in range(0, len(self.held_out_S), _RECBOLE_BATCH)]
        )
        return recbole_metrics(hits_SK, np.ones(len(hits_SK), np.int64))

    def _hits(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which places of the lists of sessions start .. stop - 1 hold what was held out."""
        held_out_B = self.held_out_S[start:stop]
        held = self.held.between(start, start + len(held_out_B))
        items_VD = self.encoder.item_vectors(torch.arange(len(self.left_out_V1), device=held_out_B.device))
        scores_BV = self.encoder.encode(self.history_SL[start:stop])[:, -1] @ items_VD.T
        scores_BV[:, self.left_out_V1] = -torch.inf
        scores_BV[torch.tensor(held.owners), torch.tensor(held.items).long()] = -torch.inf
        lists_BK = scores_BV.topk(VALID_K).indices
        is_held_out_BV = torch.zeros_like(scores_BV, dtype=torch.int32)
        is_held_out_BV[torch.arange(len(held_out_B)), held_out_B] = 1
        return is_held_out_BV.gather(1, lists_BK).bool().cpu().numpy()


def recbole_metrics(hits_SK: NDArray[np.bool_], held_out_S: Index) -> dict[str, float]:
    """RecBole's default metrics at K, which it computes at every shorter list as well, two of them user by user."""
    places_K = np.arange(1, hits_SK.shape[1] + 1)
    gain_K = 1 / np.log2(places_K + 1)
    reciprocal_SK = np.zeros(hits_SK.shape)
    for session, first in enumerate(hits_SK.argmax(axis=1)):
        reciprocal_SK[session, first:] = 1 / (first + 1) if hits_SK[session, first] else 0
    ideal_SK = np.tile(np.cumsum(gain_K), (len(hits_SK), 1))
    for session, most in enumerate(np.minimum(held_out_S, len(places_K))):
        ideal_SK[session, most:] = ideal_SK[session, most - 1]
    found_SK = hits_SK.cumsum(axis=1)
    of_lists = {
        "recall": found_SK / held_out_S[:, None],
        "mrr": reciprocal_SK,
        "ndcg": np.where(hits_SK, gain_K, 0).cumsum(axis=1) / ideal_SK,
        "hit": found_SK > 0,
        "precision": found_SK / places_K,
    }
    return {name: float(values_SK.mean(axis=0)[-1]) for name, values_SK in of_lists.items()}
