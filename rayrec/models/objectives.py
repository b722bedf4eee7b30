"""Training objectives: a model and a batch in, one scalar out."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayrec.batch import Batch
from rayrec.models.answers import answer_words
from rayrec.models.bert4rec import BERT4Rec
from rayrec.models.catalogue_sample import Sampled, gbce_loss, sampled_logits, sampled_softmax_loss
from rayrec.models.catalogue_softmax import catalogue_cross_entropy
from rayrec.models.encoder import SequenceEncoder
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Loss


def label_bce(model: SASRecLLM, batch: Batch) -> Tensor:
    """Binary cross-entropy of each row's logit against its label: equation 14; no sampled negatives.

    Of an encoder with members it is their mean: none learns to lean on another.
    """
    encoder = model.encoder if batch.prompt is None else None
    logit_MB = encoder.scores(batch) if encoder is not None else model(batch)[None]
    return F.binary_cross_entropy_with_logits(logit_MB, batch.label_B.expand_as(logit_MB))


def next_item(model: SASRecLLM, batch: Batch) -> Tensor:
    """SASRec's own objective: at every position the next liked item against one uniformly drawn other item.

    The encoder must read a sequence. The target counts as the last next item where it was liked. In a history of all
    rated items, too, what comes next is the next *liked* one, past all that was disliked in between: to predict what
    will be rated would teach what is watched, not what is liked. Positions of disliked items have a next item as well,
    since the newest position, whose state is the user vector, may be one.
    """
    encoder = model.encoder
    assert isinstance(encoder, SequenceEncoder)
    next_BL = _next_items(batch)
    mask_BL = (next_BL > 0).float()
    states_BLD = encoder.encode(batch.history_BL, batch.label_BL)
    # A shift by 1 .. items - 1 never lands on the positive itself.
    shift_BL = torch.randint(1, max(2, encoder.items), next_BL.shape, device=next_BL.device)
    other_BL = (next_BL - 1 + shift_BL) % encoder.items + 1
    # One look-up for both: each has a gradient as large as the item table.
    positive, negative = (states_BLD * encoder.item_vectors(torch.stack([next_BL, other_BL]))).sum(-1)
    loss_BL = F.softplus(-positive) + F.softplus(negative)
    return (loss_BL * mask_BL).sum() / mask_BL.sum().clamp_min(1.0)


def softmax(model: SASRecLLM, batch: Batch) -> Tensor:
    """At every position the next liked item, as there, against the whole catalogue: https://arxiv.org/abs/2307.12810."""
    encoder = model.encoder
    assert isinstance(encoder, SequenceEncoder)
    next_BL = _next_items(batch)
    there_BL = next_BL > 0
    states_ND = encoder.encode(batch.history_BL, batch.label_BL)[there_BL]
    return catalogue_cross_entropy(states_ND, encoder.item.weight[1:], next_BL[there_BL] - 1)


def sampled_softmax(model: SASRecLLM, batch: Batch, *, negatives: int) -> Tensor:
    """At every position the next liked item against ``negatives`` others, in place of the whole catalogue."""
    return _mean(sampled_softmax_loss(_sampled(model, batch, negatives)))


def gbce(model: SASRecLLM, batch: Batch, *, negatives: int, calibration: float) -> Tensor:
    """The same as binary questions: gSASRec's loss, but that negatives are a batch's and not a position's own."""
    return _mean(gbce_loss(_sampled(model, batch, negatives), calibration))


def _sampled(model: SASRecLLM, batch: Batch, negatives: int) -> Sampled:
    encoder = model.encoder
    assert isinstance(encoder, SequenceEncoder)
    next_BL = _next_items(batch)
    there_BL = next_BL > 0
    states_ND = encoder.encode(batch.history_BL, batch.label_BL)[there_BL]
    return sampled_logits(encoder, states_ND, next_BL[there_BL], negatives)


def _mean(loss_N: Tensor) -> Tensor:
    """0 where N is 0."""
    return loss_N.sum() / max(1, len(loss_N))


def cloze(model: SASRecLLM, batch: Batch) -> Tensor:
    """Hidden items of the history and its liked target against the whole catalogue: BERT4Rec, section 3.6."""
    encoder = model.encoder
    assert isinstance(encoder, BERT4Rec)
    behind_BM = torch.cat([batch.history_BL, batch.item_B[:, None]], dim=1)
    sequence_BM = torch.where(batch.label_B[:, None] > 0, behind_BM, F.pad(batch.history_BL, (1, 0)))
    hidden_BM = encoder.hidden(sequence_BM > 0)
    states_ND = encoder.encode(sequence_BM.masked_fill(hidden_BM, encoder.mask))[hidden_BM]
    return catalogue_cross_entropy(states_ND, encoder.item.weight[1 : encoder.mask], sequence_BM[hidden_BM] - 1)


def _next_items(batch: Batch) -> Tensor:
    """The liked item after each item of the history, 0 for none, shape (B, L); a liked target is the last one's."""
    liked_B = torch.where(batch.label_B > 0, batch.item_B, 0)
    next_BL = torch.cat([batch.history_BL[:, 1:], liked_B[:, None]], dim=1)
    if batch.label_BL is not None:
        is_liked_BL = torch.cat([batch.label_BL[:, 1:] == 2, batch.label_B[:, None] > 0], dim=1)
        length = next_BL.shape[1]
        place_BL = torch.where(is_liked_BL, torch.arange(length, device=next_BL.device), length)
        nearest_BL = place_BL.flip(1).cummin(1).values.flip(1)  # of the liked ones from here on; `length` for none
        next_BL = F.pad(next_BL, (0, 1)).gather(1, nearest_BL)
    return torch.where(batch.history_BL > 0, next_BL, 0)


OBJECTIVES: Mapping[Loss, Callable[..., Tensor]] = MappingProxyType(
    {
        Loss.LABEL_BCE: label_bce,
        Loss.NEXT_ITEM: next_item,
        Loss.SOFTMAX: softmax,
        Loss.SAMPLED_SOFTMAX: sampled_softmax,
        Loss.GBCE: gbce,
        Loss.CLOZE: cloze,
        Loss.ANSWER_WORDS: answer_words,
    }
)


class Objective(nn.Module):
    """What the engine trains: its forward pass is the loss."""

    def __init__(self, model: SASRecLLM, loss: Loss, of_loss: Mapping[str, Any] = MappingProxyType({})) -> None:
        """``of_loss``: the settings that the loss reads, as a stage's configuration has them."""
        super().__init__()
        self.model = model
        self.loss = partial(OBJECTIVES[loss], **of_loss)

    def forward(self, batch: Batch) -> Tensor:
        """Scalar loss of the batch, fp32."""
        found: Tensor = self.loss(self.model, batch)
        return found
