"""The systems without a neural model: fitted on the prepared training rows, in this process, block by block."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import logit
from threadpoolctl import threadpool_limits

from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.plan import Ids
from rayrec.data.rows import HISTORY, RowSource
from rayrec.data.store import open_table
from rayrec.errors import InputError
from rayrec.metrics.pointwise import auc, uauc
from rayrec.models.baselines.bias import BiasFloor
from rayrec.models.baselines.features import FeatureFloor, Rows
from rayrec.models.baselines.markov import MarkovChain
from rayrec.models.baselines.past import NEWEST, IntArray
from rayrec.models.baselines.rates import MARGIN
from rayrec.stages import Stream
from rayrec.systems import SystemName

_BLOCK_ROWS: Final = 65_536

Scores = NDArray[np.float64]


class Floor(Protocol):
    """Fitted on the training rows, its settings chosen on the valid ones; then it scores any rows."""

    def fit(self, train: Rows, valid: Rows, /) -> object: ...
    def predict(self, rows: Rows, /) -> Scores: ...


class PreparedRows:
    """A prepared split with each row's newest liked items, read on demand, in its own order or in that of time."""

    def __init__(self, folder: str, split: str, *, in_time: bool = False) -> None:
        self._rows = RowSource(folder, split, Stream.INTERACTIONS, NEWEST).open()
        self.order = np.arange(len(self._rows))
        if in_time:  # rows of a dataset that comes split may be in any order
            times = open_table(f"{folder}/{split}.parquet")[c.TIMESTAMP].to_numpy()
            self.order = np.argsort(times, kind="stable")

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Ids, /) -> pa.Table:
        ids = self.order[indices]
        return self._rows.frame(ids).append_column(HISTORY, self._rows.fetch(ids)[HISTORY])


def floor_scores(system: SystemName, folder: str, ids: Ids) -> Scores:
    """Scores of the test rows ``ids`` of the prepared data in ``folder``; shape (ids,)."""
    floor = FLOORS[system](folder)
    with _one_thread():
        floor.fit(PreparedRows(folder, "train", in_time=True), PreparedRows(folder, "valid"))
        return floor.predict(PreparedRows(folder, "test").take(ids))


def write_floor(folder: str, scratch: Path) -> None:
    """Write the feature floor's log-odds of "like" beside all prepared rows; of training rows those of their time.

    Raises:
        InputError: there is no feature floor of these rows.
    """
    with _fitted(folder, "offset") as (floor, train):
        scores = {"train": np.empty(len(train))}
        scores["train"][train.order] = floor.predict_training(train)
        scores |= {split: floor.predict(PreparedRows(folder, split)) for split in ("valid", "test")}
    logits = {split: logit(np.clip(score, MARGIN, 1 - MARGIN)) for split, score in scores.items()}
    columns = {split: pa.array(of_split, pa.float32()) for split, of_split in logits.items()}
    _write(columns, c.FLOOR_SCHEMA, scratch)
    Beside.FLOOR.publish(folder, scratch, chosen=[asdict(candidate) for candidate in floor.chosen])


def write_features(folder: str, scratch: Path) -> None:
    """Write what the feature floor knows of each prepared row beside it; of training rows what their time knew.

    Raises:
        InputError: there is no feature floor of these rows.
    """
    with _fitted(folder, "mapper.features") as (floor, train):
        found = {"train": floor.describe_training(train)[np.argsort(train.order)]}
        found |= {split: floor.describe(PreparedRows(folder, split)) for split in ("valid", "test")}
    columns = {
        split: pa.FixedSizeListArray.from_arrays(each.ravel(), each.shape[1]).cast(pa.list_(pa.float32()))
        for split, each in found.items()
    }
    _write(columns, c.FEATURES_SCHEMA, scratch)
    Beside.FEATURES.publish(folder, scratch, chosen=asdict(floor.chosen[0]))


@contextmanager
def _fitted(folder: str, key: str) -> Iterator[tuple[FeatureFloor, PreparedRows]]:
    """The feature floor and its training rows in the order of time; ``key`` of the configuration asks for it."""
    floor, train = _feature_floor(folder), PreparedRows(folder, "train", in_time=True)
    try:
        with _one_thread():
            floor.fit(train, PreparedRows(folder, "valid"))
            yield floor, train
    except ValueError as error:
        told = f"no feature floor of the rows in {folder}: {error}; leave it out"
        raise InputError(f"{key}: {told}") from None


def _write(columns: dict[str, pa.Array], schema: pa.Schema, scratch: Path) -> None:
    for split, column in columns.items():
        pq.write_table(pa.table([column], schema=schema), scratch / f"{split}.parquet", compression="zstd")


def _one_thread() -> AbstractContextManager[object]:
    """Several would wait for each other most of the time, and round as their number says."""
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


class _Constant:
    """One answer to everything, which any system must beat."""

    def __init__(self, answer: float) -> None:
        self._answer = answer

    def fit(self, train: Rows, valid: Rows, /) -> None:
        """There is nothing to learn."""

    def predict(self, rows: Rows, /) -> Scores:
        return np.full(len(rows), self._answer)


class _Counted:
    """A floor that counts how an item was liked by, or after, something else: one pass, nothing to choose."""

    def __init__(self, model: BiasFloor | MarkovChain, given: Callable[[pa.Table], IntArray]) -> None:
        self._model, self._given = model, given

    def fit(self, train: Rows, valid: Rows, /) -> None:
        for rows in _blocks(train):
            self._model.update(self._given(rows), rows[c.ITEM_ID].to_numpy(), rows[c.LABEL].to_numpy())

    def predict(self, rows: Rows, /) -> Scores:
        return np.concatenate(
            [self._model.predict(self._given(block), block[c.ITEM_ID].to_numpy()) for block in _blocks(rows)]
        )


def _users(rows: pa.Table) -> IntArray:
    users: IntArray = rows[c.USER_ID].to_numpy()
    return users


def _last_liked(rows: pa.Table) -> IntArray:
    """The newest item of each row's history, 0 for none."""
    history = rows[HISTORY].combine_chunks()
    liked = np.append(history.flatten().to_numpy(), 0)
    lengths = pc.list_value_length(history).to_numpy()
    return np.where(lengths > 0, liked[np.cumsum(lengths) - 1], 0)


def _feature_floor(folder: str) -> FeatureFloor:
    titles = open_table(f"{folder}/items.parquet")[c.TITLE].to_pylist()
    return FeatureFloor(["", *titles], auc_and_uauc)  # ids start at 1


def auc_and_uauc(users: IntArray, labels: IntArray, scores: Scores) -> float:
    """What settings are chosen by on the validation rows: AUC + UAUC, where no user has both classes AUC alone."""
    of_users, counted = uauc(users, labels, scores)
    return auc(labels, scores) + (of_users if counted else 0.0)


def _blocks(rows: Rows) -> Iterator[pa.Table]:
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield rows.take(np.arange(start, min(start + _BLOCK_ROWS, len(rows))))


FLOORS: Final = MappingProxyType[SystemName, Callable[[str], Floor]](
    {
        SystemName.YES: lambda _: _Constant(1.0),
        SystemName.NO: lambda _: _Constant(0.0),
        SystemName.BIAS: lambda _: _Counted(BiasFloor(), _users),
        SystemName.MARKOV: lambda _: _Counted(MarkovChain(), _last_liked),
        SystemName.FEATURES: _feature_floor,
    }
)
