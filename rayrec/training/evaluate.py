"""Judging a model on validation rows inside a worker group; every worker ends with the same numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from rayrec.batch import Prompt
from rayrec.config import Config
from rayrec.data.catalogue import training_counts
from rayrec.data.collate import Cut, collate, common_start
from rayrec.data.plan import Ids, sample_rows, scoring_batches
from rayrec.data.rows import OpenRows
from rayrec.metrics import session_metrics
from rayrec.metrics.pointwise import auc, log_loss, uauc
from rayrec.models.answers import answer_words
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.sessions import Index, Sessions
from rayrec.stages import VALID_K, Metric, Task
from rayrec.training.job import StageJob
from rayrec.training.kept import KeptPrefixes, kept_bytes
from rayrec.training.lists import Lister

Scores = NDArray[np.float64]
_T = TypeVar("_T")


@torch.no_grad()
def score_rows(
    model: SASRecLLM,
    rows: OpenRows,
    ids: Ids,
    config: Config,
    device: torch.device,
    *,
    kept: KeptPrefixes | None = None,
) -> Scores:
    """Probability of "like" for each row of ``ids``, shape (len(ids),); one forward pass.

    ``kept``: what earlier passes over the same ``ids`` need not read again.
    """
    cut = Cut.NOWHERE if not config.fast.split_prompts else Cut.TITLE if kept is None else Cut.LEARNING
    batch = collate(rows.fetch(ids), config.mapper.tokens, cut).to(device)
    read = None if kept is None else kept.of(model, batch, int(ids[0]))
    return torch.sigmoid(model(batch, read).double()).cpu().numpy()


@torch.no_grad()
def score_rows_twice(
    model: SASRecLLM, rows: tuple[OpenRows, OpenRows], ids: Ids, config: Config, device: torch.device
) -> tuple[Scores, Scores]:
    """The same by the language model alone and by the whole; ``rows`` are of text prompts and of hybrid ones.

    What both prompts of a history begin with is read once.
    """
    text, hybrid = (opened.fetch(ids) for opened in rows)
    start = common_start(text, hybrid)
    of_text, of_hybrid = (collate(table, config.mapper.tokens, start).to(device) for table in (text, hybrid))
    alone = SASRecLLM(None, None, model.backbone)
    read = alone.read_prefixes(of_text)
    alone_B, whole_B = (torch.sigmoid(score.double()) for score in (alone(of_text, read), model(of_hybrid, read)))
    return alone_B.cpu().numpy(), whole_B.cpu().numpy()


class Validator(Protocol):
    """The fixed validation rows of a stage."""

    def evaluate(self, model: SASRecLLM, device: torch.device) -> dict[str, float]:
        """The metrics that the stage is judged by; the same numbers on every rank."""
        ...


def open_validator(job: StageJob) -> Validator:
    """The sample that a stage is judged on, cut into batches that do not depend on the number of workers."""
    rows, settings, seed = job.rows("valid").open(), job.settings, job.config.seed
    ids = sample_rows(rows.user_ids, settings.valid_users, settings.valid_rows_per_user, seed)
    batches = scoring_batches(ids, rows.lengths, job.scoring_batch, rows.shared)
    if job.spec.reads.answers:
        return AnswerValidator(rows, batches, job.config)
    if job.spec.reads.asks(job.config.data.task) is Task.NEXT_ITEM:
        return ListValidator(rows, batches, job.config, training_counts(job.data))
    most = kept_bytes(job)
    return ScoreValidator(rows, batches, job.config, KeptPrefixes(most) if most else None)


@dataclass(frozen=True)
class ScoreValidator:
    """Of Yes or No: AUC, UAUC and log loss of the rows' scores."""

    rows: OpenRows
    batches: list[Ids]
    config: Config
    kept: KeptPrefixes | None = None  # of frozen layers

    def evaluate(self, model: SASRecLLM, device: torch.device) -> dict[str, float]:
        model.set_mode(())
        score = np.concatenate(_divided(self.batches, partial(self._scores, model, device)))
        shown = self.rows.frame(np.concatenate(self.batches))
        user, label = shown["user_id"].to_numpy(), shown["label"].to_numpy()
        of_rows, (of_users, counted) = auc(label, score), uauc(user, label, score)
        return {
            Metric.AUC.value: of_rows,
            Metric.UAUC.value: of_users,
            Metric.AUC_AND_UAUC.value: (of_rows + of_users) / 2 if counted else of_rows,
            Metric.LOG_LOSS.value: log_loss(label, score),
        }

    def _scores(self, model: SASRecLLM, device: torch.device, ids: Ids) -> Scores:
        return score_rows(model, self.rows, ids, self.config, device, kept=self.kept)


@dataclass(frozen=True)
class ListValidator:
    """Of next items: NDCG and HR of lists of ``VALID_K`` places out of the whole catalogue."""

    rows: OpenRows
    batches: list[Ids]
    config: Config
    counts: Index  # events of each item in training, by id

    def evaluate(self, model: SASRecLLM, device: torch.device) -> dict[str, float]:
        lister = Lister(model, self.counts, self.config, device)
        lists = np.concatenate(_divided(self.batches, lambda ids: lister.rank(self.rows, ids, VALID_K)[0]))
        held_out = self.rows.frame(np.concatenate(self.batches))["item_id"].to_numpy()
        found = session_metrics(lists, Sessions.of(held_out[:, None]), self.counts, (VALID_K,))
        return {
            Metric.NDCG.value: float(found[f"ndcg@{VALID_K}"].mean()),
            Metric.HR.value: float(found[f"hr@{VALID_K}"].mean()),
        }


@dataclass(frozen=True)
class AnswerValidator:
    """Of answers in words: the mean log-probability of their tokens."""

    rows: OpenRows
    batches: list[Ids]
    config: Config

    def evaluate(self, model: SASRecLLM, device: torch.device) -> dict[str, float]:
        model.set_mode(())
        found = np.array(_divided(self.batches, partial(self._log_p, model, device)))
        total, tokens = found.sum(axis=0)
        return {Metric.ANSWERS.value: float(total / tokens)}

    @torch.no_grad()
    def _log_p(self, model: SASRecLLM, device: torch.device, ids: Ids) -> tuple[float, int]:
        """Their sum over a batch, and how many tokens there are."""
        batch = collate(self.rows.fetch(ids), self.config.mapper.tokens, Cut.NOWHERE).to(device)
        assert isinstance(batch.prompt, Prompt) and batch.prompt.answer_at_B is not None
        tokens = int((batch.prompt.length_B - batch.prompt.answer_at_B).sum())
        return -float(answer_words(model, batch)) * tokens, tokens


def _divided(batches: Sequence[Ids], work: Callable[[Ids], _T]) -> list[_T]:
    """What ``work`` makes of each batch, in their order, on every rank.

    All ranks run equally many forward passes, since under ZeRO-3 each pass is a collective.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    mine: dict[int, _T] = {}
    for turn in range(-(-len(batches) // world)):
        number = turn * world + rank
        mine[number] = work(batches[min(number, len(batches) - 1)])
    gathered: list[dict[int, _T]] = [{}] * world
    dist.all_gather_object(gathered, mine)
    merged = {number: made for part in gathered for number, made in part.items()}
    return [merged[number] for number in range(len(batches))]
