"""A fetched table -> padded tensors."""

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayrec.batch import Batch, Prompt
from rayrec.data import columns as c
from rayrec.data.rows import HISTORY


def collate(table: pa.Table, soft_tokens: int) -> Batch:
    """Histories padded on the left, prompts on the right, each to the longest of this batch.

    ``soft_tokens`` places are opened in a hybrid prompt for each of the user's and the item's vector.
    """
    prompt = None
    if c.HYBRID_TOKENS in table.column_names:
        prompt = _hybrid_prompt(table, soft_tokens)
    elif c.TEXT_TOKENS in table.column_names:
        tokens, lengths = _padded(table[c.TEXT_TOKENS])
        prompt = Prompt(torch.from_numpy(tokens), torch.from_numpy(lengths))
    history, lengths = _padded(table[HISTORY])
    width = history.shape[1]
    shifted = (np.arange(width) - (width - lengths[:, None])) % width  # right-padded -> left-padded
    return Batch(
        history_BL=torch.from_numpy(np.take_along_axis(history, shifted, axis=1)),
        item_B=torch.from_numpy(table[c.ITEM_ID].to_numpy().astype(np.int64)),
        label_B=torch.from_numpy(table[c.LABEL].to_numpy().astype(np.float32)),
        prompt=prompt,
    )


def _hybrid_prompt(table: pa.Table, soft_tokens: int) -> Prompt:
    tokens, lengths = _padded(table[c.HYBRID_TOKENS])
    user_at = table[c.USER_AT].to_numpy().astype(np.int64)
    item_at = table[c.ITEM_AT].to_numpy().astype(np.int64)
    # Token j moves right by the places opened at or before it.
    column = np.arange(tokens.shape[1])
    target = column + soft_tokens * ((column >= user_at[:, None]).astype(np.int64) + (column >= item_at[:, None]))
    opened = np.zeros((len(tokens), tokens.shape[1] + 2 * soft_tokens), dtype=np.int64)
    np.put_along_axis(opened, target, tokens, axis=1)
    starts = np.stack([user_at, item_at + soft_tokens], axis=1)
    soft_at = starts[:, :, None] + np.arange(soft_tokens)
    return Prompt(torch.from_numpy(opened), torch.from_numpy(lengths + 2 * soft_tokens), torch.from_numpy(soft_at))


def _padded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
