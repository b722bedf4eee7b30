"""What the rows before a moment tell of a later row, as numbers: the features of the feature floor."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from rayrec.models.baselines.rates import FloatArray, Rates

IntArray = npt.NDArray[np.integer[Any]]

NEWEST: Final = (
    100  # rows and likes of a user that are looked at: older ones say little, and pairs grow with the square
)
_RECENT: Final = 10  # likes, as many as a prompt shows
_SHRINK: Final = 0.5  # of similarities, so that items seen once are not alike
_NEAR: Final = 0.05  # prior weight of an item's neighbourhood
_RIDGE: Final = 10.0  # of a user's slopes
_YEAR: Final = 365.25 * 24 * 3600  # seconds
_SEED: Final = 0  # of the randomised SVD


@dataclass(frozen=True)
class Asked:
    """Rows to describe; their labels are not here."""

    users: IntArray
    items: IntArray
    times: IntArray  # seconds since 1970
    liked: "Entries"  # before the row

    @classmethod
    def of(cls, rows: pa.Table) -> "Asked":
        """Of a table with the columns user_id, item_id, timestamp and history. (Spelled out here: models do not import
        the data layer. A test holds them to its names.)

        Raises:
            ValueError: a user or an item is negative.
        """
        users, items, times = (rows[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "timestamp"))
        for ids in (users, items):
            if (ids < 0).any():
                raise ValueError(f"id {ids.min()} is negative")
        history = rows["history"].combine_chunks()
        lengths = pc.list_value_length(history).to_numpy()
        liked = history.flatten().to_numpy().astype(np.int64)
        return cls(users, items, times, Entries.of(lengths, liked, np.ones(len(liked))))


@dataclass(frozen=True)
class Entries:
    """Some items of every row, oldest first, each with a weight; shape (entries,) each."""

    row: IntArray
    item: IntArray
    weight: FloatArray
    age: IntArray  # 0: the row's newest
    counts: IntArray  # entries of each row; shape (rows,)

    @classmethod
    def of(cls, lengths: IntArray, item: IntArray, weight: FloatArray) -> "Entries":
        row = np.repeat(np.arange(len(lengths)), lengths)
        age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(item))
        kept = age < NEWEST
        counts = np.minimum(lengths, NEWEST).astype(np.int64)
        return cls(row[kept], item[kept].astype(np.int64), weight[kept].astype(np.float64), age[kept], counts)

    def total(self, values: FloatArray) -> FloatArray:
        """Sum of each row's ``values``, shape (entries,); 0 for a row without entries."""
        return np.bincount(self.row, values, minlength=len(self.counts)).astype(np.float64)

    def mean(self, values: FloatArray, empty: float = 0.0) -> FloatArray:
        """Mean of each row's ``values``; ``empty`` for a row without entries."""
        return np.where(self.counts > 0, self.total(values) / np.maximum(self.counts, 1), empty)

    def most(self, values: FloatArray) -> FloatArray:
        """The greatest of each row's ``values``, which are not negative; 0 for a row without entries."""
        greatest = np.zeros(len(self.counts))
        np.maximum.at(greatest, self.row, values)
        return greatest


@dataclass(frozen=True)
class Likeness:
    """How alike items are by who rated or liked them up to a moment, going by the ``NEWEST`` rows of each user.

    Memory: 8 bytes for each ordered pair of items that a user has both rated, or liked: at most 100 pairs a row.
    """

    newest: npt.NDArray[np.bool_]  # which rows they are; shape (rows,)
    by_raters: sparse.csr_matrix  # shape (items + 1, items + 1), as ``Past`` counts them
    by_likers: sparse.csr_matrix

    @classmethod
    def of(cls, users: IntArray, items: IntArray, labels: IntArray, titled: int) -> "Likeness":
        """Of rows in the order of time, shape (rows,) each; ``titled`` items have an id.

        Raises:
            ValueError: there are no rows, or an id is negative.
        """
        shape, newest = _shape(users, items, titled), _newest(users)
        users, items, liked = users[newest], items[newest], labels[newest] == 1
        raters = _matrix(users, items, np.ones(len(users)), shape)
        likers = _matrix(users[liked], items[liked], np.ones(int(liked.sum())), shape)
        return cls(newest, _similarity(raters), _similarity(likers))


class Past:
    """Likes and dislikes up to a moment. Users and items that they do not name are described as unknown.

    A label is explained first by plain averages, as by the bias floor; what is left of it, the residual
    r = label - clip(rate of the user + rate of the item - mean, 0, 1), is what neighbours, factors and slopes are of.

    Memory: about 50 bytes a row while it is made, and its likeness of items.
    """

    def __init__(
        self,
        users: IntArray,
        items: IntArray,
        labels: IntArray,
        years: FloatArray,
        *,
        prior: float,
        factors: int,
        alike: Likeness | None = None,
    ) -> None:
        """Counts and compares.

        Args:
            users: of the rows, in the order of time; shape (rows,). Likewise ``items`` and ``labels``.
            items: small non-negative integers, as ``users``.
            labels: 1 for a like, 0 for a dislike.
            years: release years of all items by id, NaN for unknown; shape (items,).
            prior: rows' worth of the mean that every user and item starts with.
            factors: rank of the approximation of the residuals.
            alike: ``Likeness.of`` the same rows, where several pasts share it.

        Raises:
            ValueError: there are no rows, or an id is negative.
        """
        self._alike = alike or Likeness.of(users, items, labels, len(years))
        self._shape = _shape(users, items, len(years))
        self._average(users, items, labels, prior)
        self._decade = _decades(years, self._shape[1])
        expected = np.clip(self._user_rate[users] + self._item_rate[items] - self._mean, 0, 1)
        residual = labels - expected
        appeal = np.bincount(items, labels - self._user_rate[users], self._shape[1])  # whoever happened to rate it
        self._user_factors, self._item_factors = _factorised(_matrix(users, items, residual, self._shape), factors)

        newest = self._alike.newest
        users, items, residual = users[newest], items[newest], residual[newest]
        self._rated = _matrix(users, items, residual, self._shape)
        near = self._alike.by_raters.power(3)  # a share of the raters is soon had by chance: what counts is a large one
        self._near_appeal = (near @ appeal) / (near @ self._item_rows + _NEAR)
        self._slopes = [
            _Slopes(users, items, of_item, residual, self._shape[0])
            for of_item in (self._decade, self._popularity, self._item_rate)
        ]

    def _average(self, users: IntArray, items: IntArray, labels: IntArray, prior: float) -> None:
        of_users, of_items = Rates(), Rates()
        of_users.add(users, labels)
        of_items.add(items, labels)
        all_users, all_items = (np.arange(size) for size in self._shape)
        self._mean = of_users.overall()
        self._user_rate = of_users.smoothed(all_users, self._mean, prior)
        self._item_rate = of_items.smoothed(all_items, self._mean, prior)
        self._user_rows, self._item_rows = of_users.counts(all_users), of_items.counts(all_items)
        self._popularity = np.log1p(self._item_rows)
        above = np.bincount(users, labels - self._item_rate[items], self._shape[0])
        self._user_above = above / (self._user_rows + prior)

    def describe(self, asked: Asked) -> npt.NDArray[np.float32]:
        """The features of each row, shape (rows, features); the same columns whatever the past."""
        users = np.minimum(asked.users, self._shape[0] - 1)
        items = np.minimum(asked.items, self._shape[1] - 1)
        columns = [
            *self._averages(users, items),
            *self._products(users, items),
            *self._neighbours(users, items),
            *self._of_likes(items, asked.liked),
            *(slopes.at(users, items) for slopes in self._slopes),
            self._decade[items],
            asked.times / _YEAR,
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    def _averages(self, users: IntArray, items: IntArray) -> list[FloatArray]:
        return [
            self._user_rate[users],
            np.log1p(self._user_rows[users]),
            self._user_above[users],
            self._item_rate[items],
            self._popularity[items],
            self._near_appeal[items],
        ]

    def _products(self, users: IntArray, items: IntArray) -> list[FloatArray]:
        products = self._user_factors[users] * self._item_factors[items]
        return [products.sum(axis=1), *products.T]

    def _neighbours(self, users: IntArray, items: IntArray) -> list[FloatArray]:
        """The user's residuals on items that are like the target, by either likeness."""
        of_user = self._rated[users]
        rated = Entries.of(np.diff(of_user.indptr), of_user.indices, of_user.data)
        found = []
        for similarity in (self._alike.by_raters, self._alike.by_likers):
            near = _looked_up(similarity, items[rated.row], rated.item)
            total, weight = rated.total(near * rated.weight), rated.total(near)
            found += [total, total / np.sqrt(weight + 1)]
        return found

    def _of_likes(self, items: IntArray, liked: Entries) -> list[FloatArray]:
        """How alike the target and the liked items are, and what these are like."""
        item = np.minimum(liked.item, self._shape[1] - 1)
        alike = _looked_up(self._alike.by_likers, items[liked.row], item)
        recent = np.where(liked.age < _RECENT, alike, 0)
        decade = liked.mean(self._decade[item])
        return [
            liked.mean(alike),
            liked.most(alike),
            liked.total(recent) / np.clip(liked.counts, 1, _RECENT),
            liked.most(recent),
            np.log1p(liked.counts),
            liked.mean(self._popularity[item]),
            liked.mean(self._item_rate[item], empty=self._mean),
            decade,
            np.abs(self._decade[items] - decade),
        ]


class _Slopes:
    """By how much a user's residual rises with a number z of the items, ridge regression with an intercept:
    b_u = sum of (z - mean z)(r - mean r) / (sum of (z - mean z)^2 + 10), both means over the user's rows.
    """

    def __init__(self, users: IntArray, items: IntArray, of_item: FloatArray, residual: FloatArray, size: int) -> None:
        rows = np.maximum(np.bincount(users, minlength=size), 1)
        self._of_item = of_item
        self._mean = np.bincount(users, of_item[items], minlength=size) / rows
        z = of_item[items] - self._mean[users]
        r = residual - (np.bincount(users, residual, minlength=size) / rows)[users]
        self._slope = np.bincount(users, z * r, minlength=size) / (np.bincount(users, z * z, minlength=size) + _RIDGE)

    def at(self, users: IntArray, items: IntArray) -> FloatArray:
        found: FloatArray = self._slope[users] * (self._of_item[items] - self._mean[users])
        return found


def _shape(users: IntArray, items: IntArray, titled: int) -> tuple[int, int]:
    """Of users x items. The last row and the last column are nobody's and nothing's: they stay empty."""
    if not len(users):
        raise ValueError("no training rows were seen; call fit or update first")
    return int(users.max()) + 2, max(int(items.max()) + 1, titled) + 1


def _matrix(users: IntArray, items: IntArray, values: FloatArray, shape: tuple[int, int]) -> sparse.csr_matrix:
    return sparse.csr_matrix((values.astype(np.float32), (users, items)), shape)


def _decades(years: FloatArray, size: int) -> FloatArray:
    """Decades after the mean year, 0 for an item of unknown year; shape (size,)."""
    known = years[~np.isnan(years)]
    found: FloatArray = np.zeros(size)
    if len(known):
        found[: len(years)] = np.nan_to_num(years - known.mean()) / 10
    return found


def _newest(users: IntArray) -> npt.NDArray[np.bool_]:
    """Which rows are among the ``NEWEST`` of their user; rows are in the order of time."""
    order = np.argsort(users, kind="stable")
    ends = np.searchsorted(users[order], users[order], side="right")
    kept = np.empty(len(users), dtype=bool)
    kept[order] = ends - np.arange(len(users)) <= NEWEST
    return kept


def _factorised(matrix: sparse.csr_matrix, factors: int) -> tuple[FloatArray, FloatArray]:
    """Factors of users and items whose products are the best approximation of ``matrix`` of that rank."""
    rank = min(factors, *matrix.shape)
    left, scale, right = randomized_svd(matrix, rank, random_state=_SEED)
    missing = [(0, 0), (0, factors - rank)]
    return np.pad(left * scale, missing), np.pad(right.T, missing)


def _similarity(seen: sparse.csr_matrix) -> sparse.csr_matrix:
    """(users of both) / (sqrt(users of one x users of the other) + 1/2) for items that share a user; 0 with itself."""
    seen.data[:] = 1  # also where a user saw an item twice
    both = (seen.T @ seen).tocoo()
    counts = np.sqrt(seen.sum(axis=0).A1)
    apart = both.row != both.col
    row, col = both.row[apart], both.col[apart]
    values = both.data[apart] / (counts[row] * counts[col] + _SHRINK)
    return sparse.csr_matrix((values.astype(np.float32), (row, col)), both.shape)


def _looked_up(matrix: sparse.csr_matrix, rows: IntArray, columns: IntArray) -> FloatArray:
    """Entries of the matrix, one for each pair."""
    if not len(rows):
        return np.zeros(0)  # for no pairs scipy returns a matrix
    return np.asarray(matrix[rows, columns], dtype=np.float64).ravel()
