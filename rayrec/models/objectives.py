"""Training objectives: a model and a batch in, one scalar out."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayrec.batch import Batch
from rayrec.models.catalogue_softmax import catalogue_cross_entropy
from rayrec.models.encoder import SequenceEncoder
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Loss


def label_bce(model: SASRecLLM, batch: Batch) -> Tensor:
    """Binary cross-entropy of each row's logit against its label: equation 14; no sampled negatives."""
    return F.binary_cross_entropy_with_logits(model(batch), batch.label_B)


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
    positive = (states_BLD * encoder.item_vectors(next_BL)).sum(-1)
    negative = (states_BLD * encoder.item_vectors(other_BL)).sum(-1)
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


OBJECTIVES: Mapping[Loss, Callable[[SASRecLLM, Batch], Tensor]] = MappingProxyType(
    {Loss.LABEL_BCE: label_bce, Loss.NEXT_ITEM: next_item, Loss.SOFTMAX: softmax}
)


class Objective(nn.Module):
    """What the engine trains: its forward pass is the loss."""

    def __init__(self, model: SASRecLLM, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = OBJECTIVES[loss]

    def forward(self, batch: Batch) -> Tensor:
        """Scalar loss of the batch, fp32."""
        return self.loss(self.model, batch)
