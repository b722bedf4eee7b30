"""Ranking a catalogue with an encoder, in a worker group as in an actor.

The dot products of user and item vectors order the items; a session's own are left out, and so are those that training
never saw. Shapes: B rows, V items, K places.
"""

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayrec.config import Config
from rayrec.data.collate import Cut, collate
from rayrec.data.plan import Ids
from rayrec.data.rows import OpenRows
from rayrec.models.ranking import Catalogue
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.sessions import Index, Sessions

Lists = NDArray[np.int64]
Scores = NDArray[np.float32]


class Lister:
    """The item vectors of a model as it stands now; make another one once it has learned more."""

    @torch.no_grad()
    def __init__(self, model: SASRecLLM, counts: Index, config: Config, device: torch.device) -> None:
        """``counts`` are each item's events in training, by id; shape (V + 1,)."""
        assert model.encoder is not None
        model.set_mode(())
        self._encoder, self._config, self._device = model.encoder, config, device
        # Through the table's own forward pass: under ZeRO-3 nobody holds the whole of it.
        self._items_VD = self._encoder.item_vectors(torch.arange(1, len(counts), device=device)).float()
        self._catalogue = Catalogue(self._items_VD, torch.from_numpy(counts[1:] > 0).to(device))

    def rank(self, rows: OpenRows, ids: Ids, k: int) -> tuple[Lists, Scores]:
        """The k best items for each row of ``ids``, best first, and their scores; (B, K) each; one forward pass.

        Where fewer items are left, ids are 0, and their scores mean nothing.
        """
        return self.rank_table(rows.fetch(ids), rows.sessions(ids), k)

    @torch.no_grad()
    def rank_table(self, table: pa.Table, prompts: Sessions, k: int) -> tuple[Lists, Scores]:
        """The same for rows as they are fetched, and the sessions whose items are left out."""
        batch = collate(table, self._config.mapper.tokens, Cut.NOWHERE).to(self._device)
        users_BD = self._encoder.user_vectors(batch).float()
        ids_BK = self._catalogue.rank(users_BD, k, prompts=prompts)
        chosen_BKD = self._items_VD[(ids_BK - 1).clamp(min=0)]
        scores_BK = (chosen_BKD * users_BD[:, None]).sum(-1)
        return ids_BK.cpu().numpy(), scores_BK.cpu().numpy()
