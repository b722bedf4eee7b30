"""Metrics of scored rows: arrays in, numbers out.

A row has a user, a label y (1: like) and a score p, the probability of a like. Notation: N rows; TP, FP, FN, TN the
counts of the confusion matrix when p >= cutoff means "like".

All metrics but the two AUCs depend on the rows through sums alone. ``user_sums`` takes these sums once per user;
``from_sums`` turns sums into metrics. The point value uses the plain total, a bootstrap resample a weighted one, so
that every formula is written down once.

Paper: section 5.2. Deviation: its equations 15 and 16 count a tied pair as lost, we as one half, as is
common. ECE and the macro means are reported beside its metrics.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ECE_BINS: Final = 15  # equal-width, as in Guo et al., https://arxiv.org/abs/1706.04599, section 3
METRICS: Final = (
    "log_loss",
    "auc",
    "uauc",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "ece",
)
_CONFUSION: Final = 4  # tn, fp, fn, tp
_BLOCK: Final = 1 << 15  # rows
_ROW_BITS: Final = 31  # of a number of 63


def user_auc(user: npt.ArrayLike, label: npt.ArrayLike, score: npt.ArrayLike) -> FloatArray:
    """AUC of each user, in the order of ``np.unique(user)``; shape (users,), NaN where a user has one class only.

    AUC = (pairs of a liked and a disliked row with the liked one scored higher + half the tied pairs) / all pairs,
    the same as with midranks. The counts are integers, hence exact. User, score and label of a row are sorted as one
    number, which is several times as fast as sorting row numbers by the three; fewer than 2^31 rows fit into it.
    """
    scores, is_like = np.asarray(score, dtype=np.float64), np.asarray(label) == 1
    if not len(scores):
        return np.empty(0)
    index = _numbered(np.asarray(user))
    return np.concatenate([_block_auc(index[rows], scores[rows], is_like[rows]) for rows in _blocks(index)])


def _blocks(index: IntArray) -> list[IntArray]:
    """Rows by user, whole users each: large arrays miss the cache and need fresh memory, which takes twice the time."""
    order = (index << _ROW_BITS) + np.arange(len(index))
    order.sort()
    order &= (1 << _ROW_BITS) - 1
    end = np.cumsum(np.bincount(index))
    cuts = end[np.unique(np.searchsorted(end, np.arange(_BLOCK, len(index), _BLOCK)))]
    return np.split(order, cuts[cuts < len(index)])


def _block_auc(index: IntArray, scores: FloatArray, is_like: npt.NDArray[np.bool_]) -> FloatArray:
    """Users' AUC where their numbers have no gap."""
    rank = _dense_rank(scores)
    ranks = int(rank.max()) + 1
    return _areas(((index - index.min()) * ranks + rank) * 2 + is_like, lambda run: run // ranks)


def _areas(key: IntArray, owner_of: Callable[[IntArray], IntArray]) -> FloatArray:
    """AUC of each user 0, 1, ...; of a row's key the last bit is the label, the rest tells user and score, in order."""
    key.sort()
    run = key >> 1  # rows of one user with equal scores
    starts = np.flatnonzero(np.r_[True, run[1:] != run[:-1]])
    ups = np.add.reduceat(key & 1, starts)
    downs = np.diff(starts, append=len(key)) - ups
    owner = owner_of(run[starts])
    positives, negatives = np.bincount(owner, ups), np.bincount(owner, downs)
    below = np.cumsum(downs) - downs - (np.cumsum(negatives) - negatives)[owner]  # of the same user only
    return _ratio(np.bincount(owner, ups * (below + downs / 2)), positives * negatives, empty=np.nan)


def _numbered(user: IntArray) -> IntArray:
    """0, 1, ... for the users in ascending order; shape (rows,)."""
    if user.dtype.kind not in "iu" or int(user.max()) - int(user.min()) > 4 * len(user):  # no table of all between
        return np.unique(user, return_inverse=True)[1]
    low, high = int(user.min()), int(user.max())
    there = np.zeros(high - low + 1, dtype=np.int64)
    there[user - low] = 1
    numbers: IntArray = (np.cumsum(there) - 1)[user - low]
    return numbers


def _dense_rank(scores: FloatArray) -> IntArray:
    """0, 1, ... for the distinct scores in ascending order; shape (rows,)."""
    order = np.argsort(scores)
    ascending = scores[order]
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.cumsum(np.r_[False, ascending[1:] != ascending[:-1]])
    return rank


def auc(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Area under the ROC curve; ties count one half. NaN without both classes. Equals ``roc_auc_score``.

    The bits of a positive number are in its order, so that probabilities need no ranks.
    """
    scores = np.asarray(score, dtype=np.float64) + 0.0  # no -0.0
    if not len(scores):
        return float("nan")
    if scores.min() >= 0 and scores.max() < 2:  # then the two highest bits are free
        (value,) = _areas(scores.view(np.int64) * 2 + (np.asarray(label) == 1), np.zeros_like)
    else:
        (value,) = user_auc(np.zeros(len(scores), dtype=np.int64), label, scores)
    return float(value)


def uauc(user: npt.ArrayLike, label: npt.ArrayLike, score: npt.ArrayLike) -> tuple[float, int]:
    """Unweighted mean of the users' AUCs, and how many users count: those with both classes. NaN when none does."""
    return mean_auc(user_auc(user, label, score))


def mean_auc(per_user: FloatArray) -> tuple[float, int]:
    """``uauc`` of what ``user_auc`` returned."""
    counted = per_user[~np.isnan(per_user)]
    return (float(counted.mean()) if len(counted) else float("nan")), len(counted)


def row_log_loss(label: npt.ArrayLike, score: npt.ArrayLike) -> FloatArray:
    """-ln of the probability given to each row's label, in nats; shape (rows,).

    That probability is clipped to [eps, 1 - eps], eps the spacing of float64 at 1, as in ``sklearn.metrics.log_loss``.
    """
    scores = np.asarray(score, dtype=np.float64)
    eps = np.finfo(np.float64).eps
    given: FloatArray = np.clip(np.where(np.asarray(label) == 1, scores, 1 - scores), eps, 1 - eps)
    return -np.log(given)


def log_loss(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Mean of ``row_log_loss``; NaN without rows."""
    return float(row_log_loss(label, score).mean()) if np.size(label) else float("nan")


def user_sums(index: IntArray, label: npt.ArrayLike, score: npt.ArrayLike, *, cutoff: float) -> FloatArray:
    """Per-user sums that determine every metric but the AUCs; shape (users, 1 + 4 + ECE_BINS).

    Columns: log loss; TN, FP, FN, TP; and for each ECE bin the sum of y - p.

    Args:
        index: each row's user as 0 .. users - 1; shape (rows,). All zeros sum over everything.
        label: 0 or 1; shape (rows,).
        score: probability of a like; shape (rows,).
        cutoff: a score of at least this counts as a like.
    """
    labels, scores = np.asarray(label, dtype=np.int64), np.asarray(score, dtype=np.float64)
    users = int(index.max()) + 1 if len(index) else 0

    def table(column: IntArray, width: int, weights: FloatArray | None = None) -> FloatArray:
        flat = np.bincount(index * width + column, weights, minlength=users * width)
        return flat.reshape(users, width).astype(np.float64)

    nothing = np.zeros(len(index), dtype=np.int64)
    return np.hstack(
        [
            table(nothing, 1, row_log_loss(labels, scores)),
            table(2 * labels + (scores >= cutoff), _CONFUSION),
            table(ece_bin(scores), ECE_BINS, labels - scores),
        ]
    )


def ece_bin(score: npt.ArrayLike) -> IntArray:
    """The bin of each score: bin b of ``ECE_BINS`` holds b/15 <= p < (b + 1)/15, the last one also p = 1."""
    return np.minimum((np.asarray(score, dtype=np.float64) * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def from_sums(sums: FloatArray) -> dict[str, FloatArray]:
    """Metrics of sums of ``user_sums`` rows: shape (..., 1 + 4 + ECE_BINS) -> shape (...) each.

    - log loss: mean, in nats. ECE: sum over bins of |sum of y - p| / N, which is the usual
      sum of (n_bin / N) |share of likes - mean score|.
    - accuracy: (TP + TN) / N. precision: TP / (TP + FP). recall: TP / (TP + FN). f1: 2 TP / (2 TP + FP + FN).
    - the macro ones: mean of the metric for "like" and of the same metric for "dislike", both always counted.

    A quotient 0 / 0 is 0 for precision, recall and F1 (scikit-learn's default) and NaN for those without rows.
    """
    tn, fp, fn, tp = np.moveaxis(sums[..., 1 : 1 + _CONFUSION], -1, 0)
    rows = tn + fp + fn + tp
    likes = _precision_recall_f1(tp, fp, fn)
    dislikes = _precision_recall_f1(tn, fn, fp)
    result = {
        "log_loss": _ratio(sums[..., 0], rows, empty=np.nan),
        "accuracy": _ratio(tp + tn, rows, empty=np.nan),
        "ece": _ratio(np.abs(sums[..., 1 + _CONFUSION :]).sum(axis=-1), rows, empty=np.nan),
    }
    for name, like, dislike in zip(("precision", "recall", "f1"), likes, dislikes, strict=True):
        result[name] = np.where(rows > 0, like, np.nan)
        result[f"{name}_macro"] = np.where(rows > 0, (like + dislike) / 2, np.nan)
    return result


def _precision_recall_f1(hit: FloatArray, alarm: FloatArray, miss: FloatArray) -> tuple[FloatArray, ...]:
    return _ratio(hit, hit + alarm), _ratio(hit, hit + miss), _ratio(2 * hit, 2 * hit + alarm + miss)


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike, empty: float = 0.0) -> FloatArray:
    quotient: FloatArray = np.full(np.shape(numerator), empty)
    np.divide(numerator, denominator, out=quotient, where=np.not_equal(denominator, 0))
    return quotient
