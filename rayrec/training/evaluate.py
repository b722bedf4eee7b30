"""Scoring rows with a model inside a worker group; every worker ends with all the scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from rayrec.config import Config
from rayrec.data.collate import Cut, collate
from rayrec.data.plan import Ids, sample_rows, scoring_batches
from rayrec.data.rows import OpenRows
from rayrec.metrics.pointwise import auc, log_loss, uauc
from rayrec.models.sasrecllm import SASRecLLM

Scores = NDArray[np.float64]


@torch.no_grad()
def score_rows(model: SASRecLLM, rows: OpenRows, ids: Ids, config: Config, device: torch.device) -> Scores:
    """Probability of "like" for each row of ``ids``, shape (len(ids),); one forward pass."""
    cut = Cut.TITLE if config.fast.split_prompts else Cut.NOWHERE
    batch = collate(rows.fetch(ids), config.mapper.tokens, cut).to(device)
    return torch.sigmoid(model(batch).double()).cpu().numpy()


@dataclass(frozen=True)
class Validator:
    """The fixed validation rows of a stage, cut into batches that do not depend on the number of workers."""

    rows: OpenRows
    batches: list[Ids]
    config: Config

    @classmethod
    def sample(
        cls, rows: OpenRows, *, users: int | None, rows_per_user: int | None, seed: int, batch: int, config: Config
    ) -> "Validator":
        ids = sample_rows(rows.user_ids, users, rows_per_user, seed)
        return cls(rows, scoring_batches(ids, rows.lengths, batch, rows.shared), config)

    def evaluate(self, model: SASRecLLM, device: torch.device) -> dict[str, float]:
        """Validation AUC, UAUC and log loss; the same numbers on every rank.

        All ranks run equally many forward passes, since under ZeRO-3 each pass is a collective.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        model.set_mode(())
        rounds = -(-len(self.batches) // world)
        mine: dict[int, Scores] = {}
        for turn in range(rounds):
            number = turn * world + rank
            batch = self.batches[min(number, len(self.batches) - 1)]
            mine[number] = score_rows(model, self.rows, batch, self.config, device)
        gathered: list[dict[int, Scores]] = [{}] * world
        dist.all_gather_object(gathered, mine)
        merged: dict[int, Any] = {number: scores for part in gathered for number, scores in part.items()}
        score = np.concatenate([merged[number] for number in range(len(self.batches))])
        shown = self.rows.frame(np.concatenate(self.batches))
        user, label = shown["user_id"].to_numpy(), shown["label"].to_numpy()
        return {
            "valid_auc": auc(label, score),
            "valid_uauc": uauc(user, label, score)[0],
            "valid_log_loss": log_loss(label, score),
        }
