"""The feature floor: logistic regression on what counts, likenesses and factors tell of a user and an item.

It is what a system must clear to have learned more than can be counted. A label must not be among the counts that
describe its own row: so the training rows are cut by time into blocks, a row is described by what the blocks before its
own tell (`past.Past`), and the first block only serves as the others' past. Valid and test rows are described by all
training rows. Leaving out just the row itself would leak: the rest of a user's mean then tells the label.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from rayrec.models.baselines.past import Asked, IntArray, Likeness, Past
from rayrec.models.baselines.rates import FloatArray

Ids = npt.NDArray[np.int64]  # positions of rows
Features = npt.NDArray[np.float32]  # shape (rows, features)

MOST_ROWS: Final = 200_000  # training rows that the regression is fitted to
_CHUNK: Final = 8192  # rows described at a time
_SEED: Final = 0  # of the sample above MOST_ROWS
_YEAR: Final = re.compile(r"\(((?:18|19|20)\d\d)\)\s*$")

Judge = Callable[[IntArray, IntArray, FloatArray], float]  # users, labels, scores -> how good the scores are


class Rows(Protocol):
    """Rows with the columns user_id, item_id, label, timestamp and history: a ``pa.Table``, or rows in a file."""

    def __len__(self) -> int: ...

    def take(self, indices: Ids, /) -> pa.Table:
        """The rows at these positions, in that order."""


class Counting(NamedTuple):
    """How the past is counted."""

    prior: float
    factors: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One setting of the hyper-parameters."""

    blocks: int  # of time, that the training rows are cut into
    prior: float  # rows' worth of the mean that every user and item starts with
    factors: int  # of the residuals' approximation
    C: float  # inverse strength of the regression's penalty

    @property
    def counting(self) -> Counting:
        return Counting(self.prior, self.factors)


CANDIDATES: Final = tuple(
    Candidate(blocks=blocks, prior=prior, factors=16, C=C)
    for blocks, prior, C in itertools.product((10, 20), (5.0, 20.0), (1e-3, 1e-2, 1e-1))
)


class FeatureFloor:
    """p(like) of a standardised logistic regression; the mean of the ``kept`` candidates best on the valid rows.

    Memory: 17 bytes a training row; for each prior among the candidates a `Past`, and 164 bytes for each of at most
    ``MOST_ROWS`` rows that the regression is fitted to (41 features in float32).
    """

    def __init__(
        self, titles: Sequence[str], judge: Judge, *, kept: int = 1, candidates: Sequence[Candidate] = CANDIDATES
    ) -> None:
        """Nothing is fitted yet.

        Args:
            titles: of all items by id; a release year is read off their ends.
            judge: of a candidate's scores on the valid rows; more is better.
            kept: how many candidates are averaged.
            candidates: those with the same ``blocks`` should be neighbours: they share work.
        """
        self._years = release_years(titles)
        self._judge, self._most, self._candidates = judge, kept, candidates
        self._kept: list[_Fitted] = []

    @property
    def chosen(self) -> list[Candidate]:
        """The candidates kept, the best first."""
        return [fitted.candidate for fitted in self._kept]

    def fit(self, train: Rows, valid: Rows) -> "FeatureFloor":
        """Fits every candidate to ``train`` and keeps those that do best on ``valid``.

        Raises:
            ValueError: an id is negative, or the training rows have one time only.
        """
        seen, judged = Seen.of(train), Seen.of(valid)
        self._kept = []
        settings = list(dict.fromkeys(one.counting for one in self._candidates))
        pasts = dict(zip(settings, seen.pasts(len(train), self._years, settings), strict=True))
        described = {setting: describe(past, valid, np.arange(len(valid))) for setting, past in pasts.items()}
        for blocks, group in itertools.groupby(self._candidates, lambda one: one.blocks):
            ids, found = training_features(train, seen, self._years, blocks, settings)
            features = dict(zip(settings, found, strict=True))
            for candidate in group:
                setting = candidate.counting
                model = _regression(candidate).fit(features[setting], seen.labels[ids])
                score = self._judge(judged.users, judged.labels, model.predict_proba(described[setting])[:, 1])
                self._keep(_Fitted(score, candidate, pasts[setting], model))
        return self

    def predict(self, rows: Rows) -> FloatArray:
        """Probability of a like for each row; shape (rows,).

        Raises:
            ValueError: nothing is fitted, or an id is negative.
        """
        self._best()
        ids = np.arange(len(rows))
        scores = [one.model.predict_proba(describe(one.past, rows, ids))[:, 1] for one in self._kept]
        mean: FloatArray = np.mean(scores, axis=0)
        return mean

    def predict_training(self, train: Rows) -> FloatArray:
        """Probability of a like for each training row, by what does not know its label; shape (rows,).

        Of all candidates kept, the mean of what follows. A row is described by the blocks before its own, and the
        regression is fitted to rows of all blocks but its own. Rows of the first block, which nothing describes, get
        the like rate of the others. Memory: as ``fit``, and the features of a block.

        Raises:
            ValueError: nothing is fitted, or the rows are not in the order of time or have one time only.
        """
        self._best()
        seen = Seen.of(train)
        scores = [_cross_fitted(one.candidate, train, seen, self._years) for one in self._kept]
        mean: FloatArray = np.mean(scores, axis=0)
        return mean

    def describe(self, rows: Rows) -> Features:
        """The standardised features of each row, as the best candidate counts them; shape (rows, features).

        Raises:
            ValueError: nothing is fitted, or an id is negative.
        """
        best = self._best()
        return best.standardised(describe(best.past, rows, np.arange(len(rows))))

    def describe_training(self, train: Rows) -> Features:
        """The same of each training row by the blocks before its own; 0, the mean, in the first, which none describe.

        Memory: 164 bytes a row.

        Raises:
            ValueError: nothing is fitted, or the rows are not in the order of time or have one time only.
        """
        best, seen = self._best(), Seen.of(train)
        found = np.zeros((len(train), best.model.n_features_in_), np.float32)
        starts = _blocks_of(train, seen, best.candidate.blocks)
        for start, end in itertools.pairwise([*starts[1:], len(train)]):
            (past,) = seen.pasts(start, self._years, [best.candidate.counting])
            found[start:end] = best.standardised(describe(past, train, np.arange(start, end)))
        return found

    def _best(self) -> "_Fitted":
        if not self._kept:
            raise ValueError("no training rows were seen; call fit first")
        return self._kept[0]

    def _keep(self, fitted: "_Fitted") -> None:
        """Ties go to the candidate that came first."""
        self._kept = sorted([*self._kept, fitted], key=lambda one: -one.score)[: self._most]


def release_years(titles: Sequence[str]) -> FloatArray:
    """The year that a title ends with in brackets, as "Heat (1995)"; NaN for none. Shape (titles,)."""
    found = [_YEAR.search(title) for title in titles]
    return np.array([float(match.group(1)) if match else np.nan for match in found])


@dataclass(frozen=True)
class Seen:
    """The rows that are counted, without their histories; shape (rows,) each."""

    users: IntArray
    items: IntArray
    labels: IntArray
    times: IntArray

    @classmethod
    def of(cls, rows: Rows) -> "Seen":
        """Reads them in chunks."""
        names, types = ("user_id", "item_id", "label", "timestamp"), (np.int32, np.int32, np.int8, np.int64)
        columns = [np.empty(len(rows), dtype) for dtype in types]
        for ids in _chunks(np.arange(len(rows))):
            chunk = rows.take(ids)
            for name, column in zip(names, columns, strict=True):
                column[ids] = chunk[name].to_numpy()
        return cls(*columns)

    def pasts(self, end: int, years: FloatArray, settings: Sequence[Counting]) -> list[Past]:
        """What the first ``end`` rows tell, counted in each way; the likeness of items does not depend on it."""
        rows = self.users[:end], self.items[:end], self.labels[:end]
        alike = Likeness.of(*rows, len(years))
        return [Past(*rows, years, **setting._asdict(), alike=alike) for setting in settings]


def training_features(
    train: Rows, seen: Seen, years: FloatArray, blocks: int, settings: Sequence[Counting]
) -> tuple[Ids, list[Features]]:
    """Positions of the training rows to fit to, and by each way to count their features, from the blocks before theirs.

    Above ``MOST_ROWS`` the newest blocks are taken, and of the oldest among them a seeded sample.

    Raises:
        ValueError: the rows are not in the order of time, or have one time only.
    """
    starts = _blocks_of(train, seen, blocks)
    random, left = np.random.default_rng(_SEED), MOST_ROWS
    found: list[tuple[Ids, list[Features]]] = []
    for start, end in reversed(list(itertools.pairwise([*starts[1:], len(train)]))):
        ids = np.arange(start, end)
        if len(ids) > left:
            ids = np.sort(random.choice(ids, left, replace=False))
        if len(ids):
            found.append((ids, [describe(past, train, ids) for past in seen.pasts(start, years, settings)]))
        left -= len(ids)
    each = zip(*(features for _, features in found), strict=True)
    return np.concatenate([ids for ids, _ in found]), [np.concatenate(features) for features in each]


def _cross_fitted(candidate: Candidate, train: Rows, seen: Seen, years: FloatArray) -> FloatArray:
    """Block by block; each regression is fitted to at most ``MOST_ROWS`` rows, a seeded sample of every other block."""
    starts, labels = _blocks_of(train, seen, candidate.blocks), seen.labels
    random, share = np.random.default_rng(_SEED), MOST_ROWS // (len(starts) - 1)

    def described(block: Ids, ids: Ids) -> Features:
        (past,) = seen.pasts(int(block[0]), years, [candidate.counting])
        return describe(past, train, ids)

    _, *blocks = (np.arange(start, end) for start, end in itertools.pairwise([*starts, len(train)]))
    samples = [ids if len(ids) <= share else np.sort(random.choice(ids, share, replace=False)) for ids in blocks]
    known = labels[np.concatenate(samples)]
    features = np.concatenate([described(*pair) for pair in zip(blocks, samples, strict=True)])
    of_block = np.repeat(np.arange(len(blocks)), [len(ids) for ids in samples])
    scores = np.full(len(train), _rate(known))
    for number, ids in enumerate(blocks):
        others = of_block != number
        scores[ids] = _rate(known[others])
        if len(np.unique(known[others])) == 2:
            model = _regression(candidate).fit(features[others], known[others])
            scores[ids] = model.predict_proba(described(ids, ids))[:, 1]
    return scores


def _rate(labels: IntArray) -> float:
    """The like rate, as if of one more like and one more dislike: never 0 or 1."""
    return float((labels.sum() + 1) / (len(labels) + 2))


def _blocks_of(train: Rows, seen: Seen, blocks: int) -> Ids:
    starts = block_starts(seen.times, blocks)
    if len(starts) < 2:
        raise ValueError(f"all {len(train)} training rows have the same time; features need rows that came before")
    return starts


def _regression(candidate: Candidate) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=candidate.C, max_iter=1000))


def block_starts(times: IntArray, blocks: int) -> Ids:
    """Where each block of about equal size begins; rows of one time are in one block, so there may be fewer.

    Raises:
        ValueError: ``times`` do not rise.
    """
    if (np.diff(times) < 0).any():
        raise ValueError("the training rows are not in the order of time")
    wanted = times[np.arange(blocks) * len(times) // blocks]
    starts: Ids = np.unique(np.searchsorted(times, wanted))
    return starts


def describe(past: Past, rows: Rows, ids: Ids) -> Features:
    """The features of the rows ``ids``, shape (ids, features)."""
    return np.concatenate([past.describe(Asked.of(rows.take(chunk))) for chunk in _chunks(ids)])


@dataclass(frozen=True)
class _Fitted:
    score: float
    candidate: Candidate
    past: Past
    model: Pipeline

    def standardised(self, features: Features) -> Features:
        """By the means and spreads of the rows that the regression is fitted to."""
        found: Features = self.model[0].transform(features).astype(np.float32)
        return found


def _chunks(ids: Ids) -> Iterator[Ids]:
    for start in range(0, max(len(ids), 1), _CHUNK):
        yield ids[start : start + _CHUNK]
