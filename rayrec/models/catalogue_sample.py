"""Losses against a sample of the catalogue, where it is too large to be scored at every position.

Shapes: N positions, K negatives, C = K + 1 items that are drawn, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rayrec.models.encoder import Encoder


@dataclass(frozen=True)
class Sampled:
    """Logits of each position's own item and of other items, in fp32."""

    own_N: Tensor
    others_NC: Tensor  # the one of each row that does not count is -inf
    share: float  # of the items other than a position's own: with what probability each of them counts


def sampled_logits(encoder: Encoder, states_ND: Tensor, target_N: Tensor, negatives: int) -> Sampled:
    """Each position against ``negatives`` other items, or all of them where there are fewer.

    K + 1 items are drawn for all positions together, uniformly and none twice. A position leaves out its own item, or
    else the last that was drawn, so that it has K negatives, each set of them as likely as any other.
    """
    others = max(1, encoder.items - 1)
    count = min(negatives, others)
    drawn_C = torch.randperm(encoder.items, device=target_N.device)[: count + 1] + 1
    left_out_NC = drawn_C == target_N[:, None]
    left_out_NC[:, -1] |= ~left_out_NC.any(1)
    states_ND = states_ND.float()
    return Sampled(
        own_N=(states_ND * encoder.item_vectors(target_N).float()).sum(-1),
        others_NC=(states_ND @ encoder.item_vectors(drawn_C).float().T).masked_fill(left_out_NC, -torch.inf),
        share=count / others,
    )


def sampled_softmax_loss(sampled: Sampled) -> Tensor:
    """-log(e^s+ / (e^s+ + sum of e^(s - log q))), shape (N,): the sum estimates that of all other items.

    Bengio and Senecal 2008, https://doi.org/10.1109/TNN.2007.912312. q is the probability of a negative to be among the
    sample. In-batch negatives correct the positive's logit as well (Yi et al. 2019,
    https://doi.org/10.1145/3298689.3346996), as if it had been drawn; here it is not drawn and has none:
    https://arxiv.org/abs/2507.09331.
    """
    logits = torch.cat([sampled.own_N[:, None], sampled.others_NC - math.log(sampled.share)], dim=1)
    return logits.logsumexp(1) - sampled.own_N


def gbce_loss(sampled: Sampled, calibration: float) -> Tensor:
    """-(beta log sigma(s+) + sum of log(1 - sigma(s-))) / (K + 1), shape (N,): https://arxiv.org/abs/2308.07192.

    beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha), t the calibration and alpha the share that is sampled.
    """
    beta = 1 - calibration * (1 - sampled.share)
    total_N = beta * F.softplus(-sampled.own_N) + F.softplus(sampled.others_NC).sum(1)
    return total_N / sampled.others_NC.shape[1]
