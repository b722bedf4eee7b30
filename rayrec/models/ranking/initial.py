"""LLM2SASRec, LLM2BERT4Rec, LLM2GRU4Rec: a trainable item table that starts from name embeddings.

Paper: https://arxiv.org/abs/2402.01339. Shapes: I items, V rows of a table, D width.
"""

import torch
from torch import Tensor

from rayrec.errors import InputError
from rayrec.models.reductions import Rows


def initial_table(drawn_VD: Tensor, embeddings_ID: Rows) -> Tensor:
    """Initial weights of a table as the model draws it: row 0 pads, rows 1 to I are items, a mask's may follow.

    The rows of items are copied as they are, without scaling: so does the paper's code, whose reductions are not
    normalised there either. What is no item, or an item without a name (a row of zeros), stays as drawn.

    Raises:
        InputError: the embeddings are of another width, or there are more of them than the table has rows for.
    """
    items, width = embeddings_ID.shape
    if width != drawn_VD.shape[1] or items > len(drawn_VD) - 1:
        raise InputError(
            f"name embeddings of {items} items and width {width} do not fit an item table of {len(drawn_VD) - 1} items"
            f" and width {drawn_VD.shape[1]}; reduce them to that width, from the same catalogue"
        )
    rows_ID = torch.from_numpy(embeddings_ID).to(drawn_VD)
    known_I1 = rows_ID.any(dim=1, keepdim=True)
    table_VD = drawn_VD.detach().clone()
    table_VD[1 : items + 1] = torch.where(known_I1, rows_ID, table_VD[1 : items + 1])
    return table_VD
