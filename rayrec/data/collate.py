"""A fetched table -> padded tensors."""

from enum import Enum

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayrec.batch import FEATURES, Batch, Prompt, SplitPrompt
from rayrec.data import columns as c
from rayrec.data.rows import HISTORY

Array = NDArray[np.int64]


class Cut(Enum):
    """Where prompts of equal history come apart; left of it they are one."""

    NOWHERE = "nowhere"  # every prompt whole
    LEARNING = "learning"  # before the first token that may learn: a hybrid prompt's user, a text prompt's title
    TITLE = "title"  # before the target's title, which is the first token that differs


def collate(table: pa.Table, soft_tokens: int, cut: Cut | Array) -> Batch:
    """Histories padded on the left, prompts on the right, each to the longest of this batch.

    ``soft_tokens`` places are opened in a hybrid prompt for each of the user's and the item's vector. ``cut`` may also
    be each row's own place, the same for rows of equal history.
    """
    history, lengths = padded(table[HISTORY])
    width = history.shape[1]
    shifted = (np.arange(width) - (width - lengths[:, None])) % width  # right-padded -> left-padded
    return Batch(
        user_B=torch.from_numpy(_numbers(table[c.USER_ID]) - c.UNKNOWN_USER),
        history_BL=torch.from_numpy(np.take_along_axis(history, shifted, axis=1)),
        item_B=torch.from_numpy(_numbers(table[c.ITEM_ID])),
        label_B=torch.from_numpy(table[c.LABEL].to_numpy().astype(np.float32)),
        prompt=_prompt(table, soft_tokens, cut) if c.SHARED in table.column_names else None,
        label_BL=_history_labels(table, shifted) if c.HISTORY_LABELS in table.column_names else None,
        floor_B=torch.from_numpy(table[c.FLOOR].to_numpy().copy()) if c.FLOOR in table.column_names else None,
        features_BF=_features(table[c.FEATURES]) if c.FEATURES in table.column_names else None,
    )


def _features(column: pa.ChunkedArray) -> torch.Tensor:
    """Shape (rows, FEATURES)."""
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks] or [np.empty(0, np.float32)])
    return torch.from_numpy(flat.reshape(len(column), FEATURES))


def common_start(text: pa.Table, hybrid: pa.Table) -> Array:
    """How many tokens both prompts of a row begin with, before the first soft one: what the history alone decides."""
    one, other = padded(text[c.TEXT_TOKENS])[0], padded(hybrid[c.HYBRID_TOKENS])[0]
    width = min(one.shape[1], other.shape[1])
    alike = (one[:, :width] == other[:, :width]) & (np.arange(width) < _numbers(hybrid[c.USER_AT])[:, None])
    counted: Array = np.logical_and.accumulate(alike, axis=1).sum(axis=1)
    return counted


def _history_labels(table: pa.Table, shifted: Array) -> torch.Tensor:
    """1 for a dislike, 2 for a like, 0 for padding."""
    labels, lengths = padded(table[c.HISTORY_LABELS])
    labels[np.arange(labels.shape[1]) < lengths[:, None]] += 1
    return torch.from_numpy(np.take_along_axis(labels, shifted, axis=1))


def _prompt(table: pa.Table, soft_tokens: int, cut: Cut | Array) -> Prompt | SplitPrompt:
    if c.ANSWER_AT in table.column_names:
        tokens, lengths = padded(table[c.TEXT_TOKENS])
        answer_at = torch.from_numpy(_numbers(table[c.ANSWER_AT]))
        return Prompt(torch.from_numpy(tokens), torch.from_numpy(lengths), answer_at_B=answer_at)
    if c.HYBRID_TOKENS in table.column_names:
        tokens, lengths, soft_at = _opened(table, soft_tokens)
        title_at = _numbers(table[c.TITLE_AT]) + soft_tokens
        # Rows of equal liked histories may differ in what else was rated, and then in the user's vector.
        shares_user = cut is Cut.TITLE and c.HISTORY_LABELS not in table.column_names
        place = title_at if shares_user else soft_at[:, 0, 0]
    else:
        tokens, lengths = padded(table[c.TEXT_TOKENS])
        soft_at, place = None, _numbers(table[c.TEXT_TITLE_AT])
    if cut is Cut.NOWHERE:
        return Prompt(torch.from_numpy(tokens), torch.from_numpy(lengths), _tensor(soft_at))
    if not isinstance(cut, Cut):
        place = cut
    _, first, of = np.unique(_numbers(table[c.SHARED]), return_index=True, return_inverse=True)
    start = place[first]
    prefix = tokens[first, : start.max()]
    prefix[np.arange(prefix.shape[1]) >= start[:, None]] = 0
    return SplitPrompt(
        prefix_UP=torch.from_numpy(prefix),
        prefix_length_U=torch.from_numpy(start),
        prefix_of_B=torch.from_numpy(of.astype(np.int64)),
        suffix_BS=torch.from_numpy(_behind(tokens, lengths, place)),
        suffix_length_B=torch.from_numpy(lengths - place),
        soft_at_B2K=None if soft_at is None else _tensor(soft_at - place[:, None, None]),
    )


def _opened(table: pa.Table, count: int) -> tuple[Array, Array, Array]:
    """Hybrid prompts with room for ``count`` soft tokens at both places; their lengths, and where the room is."""
    tokens, lengths = padded(table[c.HYBRID_TOKENS])
    user_at, item_at = _numbers(table[c.USER_AT]), _numbers(table[c.ITEM_AT])
    # Token j moves right by the places opened at or before it.
    column = np.arange(tokens.shape[1])
    target = column + count * ((column >= user_at[:, None]).astype(np.int64) + (column >= item_at[:, None]))
    opened = np.zeros((len(tokens), tokens.shape[1] + 2 * count), dtype=np.int64)
    np.put_along_axis(opened, target, tokens, axis=1)
    starts = np.stack([user_at, item_at + count], axis=1)
    return opened, lengths + 2 * count, starts[:, :, None] + np.arange(count)


def _behind(tokens: Array, lengths: Array, place: Array) -> Array:
    """Each row from its own ``place`` on, padded on the right."""
    column = np.arange((lengths - place).max()) + place[:, None]
    behind: Array = np.take_along_axis(tokens, np.minimum(column, tokens.shape[1] - 1), axis=1)
    behind[column >= lengths[:, None]] = 0
    return behind


def _tensor(values: Array | None) -> torch.Tensor | None:
    return None if values is None else torch.from_numpy(values)


def _numbers(column: pa.ChunkedArray) -> Array:
    numbers: Array = column.to_numpy().astype(np.int64)
    return numbers


def padded(column: pa.ChunkedArray) -> tuple[Array, Array]:
    """Lists -> (rows, longest) padded with 0 on the right, and each row's length; never narrower than one."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of an empty or single-chunk column keeps the wrapper
        array = pa.concat_arrays(array.chunks)
    offsets = array.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    padded = np.zeros((len(lengths), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
    filled = np.arange(padded.shape[1]) < lengths[:, None]
    padded[filled] = array.values.to_numpy()[offsets[0] : offsets[-1]]
    return padded, lengths
