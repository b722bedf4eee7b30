"""An ensemble: systems' probabilities pooled into one.

p = sigmoid(sum over m of w_m logit(p_m)), with w_m >= 0 and sum of w_m = 1: the logarithmic opinion pool (Genest and
Zidek 1986, https://doi.org/10.1214/ss/1177013825). Every member is trained with binary cross-entropy, so its logit is
a log-odds, and a weighted mean of log-odds is one again: members that agree are not outdone by their pool. No weight
is negative: a pool may leave a member out, but not bet against it.

The weights are the best of a coarse grid on the validation rows, by what systems are compared by. That is less free
than a regression on the logits, on purpose: these rows may be a few hundred, and the members' checkpoints were chosen
on them before.
"""

import itertools
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Judge = Callable[[IntArray, IntArray, FloatArray], float]  # users, labels, scores -> how good the scores are
Weights = tuple[float, ...]  # one a member; they sum to one

PARTS: Final = 12  # that the whole is cut into: halves, thirds and quarters are among the weights
_EPS: Final = float(np.finfo(np.float64).eps)


def pool(scores: FloatArray, weights: Weights) -> FloatArray:
    """Probability of a like: members' probabilities (rows, members) -> (rows,).

    They are clipped to [eps, 1 - eps], eps the spacing of float64 at 1, as in the log loss.
    """
    pooled: FloatArray = expit(logit(np.clip(scores, _EPS, 1 - _EPS)) @ np.asarray(weights))
    return pooled


def choose_weights(users: IntArray, labels: IntArray, scores: FloatArray, judge: Judge) -> Weights:
    """The weights whose pool ``judge`` likes best, of equals the most even ones; so, too, where it finds no number.

    Args:
        users: of the validation rows; shape (rows,).
        labels: 0 or 1; shape (rows,).
        scores: the members' probabilities; shape (rows, members).
        judge: more is better.
    """
    return max(candidates(scores.shape[1]), key=lambda weights: judge(users, labels, pool(scores, weights)))


def candidates(members: int) -> list[Weights]:
    """Every cut of the whole into ``PARTS`` equal parts, the most even first: 91 for three members."""
    cuts = (cut for cut in itertools.product(range(PARTS + 1), repeat=members) if sum(cut) == PARTS)
    ordered = sorted(cuts, key=lambda cut: (sum(parts**2 for parts in cut), cut))
    return [tuple(parts / PARTS for parts in cut) for cut in ordered]
