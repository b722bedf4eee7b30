"""What every ranker of the next-item track offers."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from rayrec.sessions import Sessions


class Ranker(Protocol):
    """Fitted on whole sessions, ranks a catalogue for prompts: sessions whose next item is asked for.

    A ranker gives lists, not scores: (prompts, items) scores of 22k prompts and 12k items are 1 GB, and of a million
    items more than a machine has. It works through the prompts in blocks of its own, and equal prompts get equal lists.
    """

    def fit(self, train: Sessions, items: int) -> "Ranker":
        """Forgets what it was fitted on before. The catalogue has the ids 1 .. ``items``."""
        ...

    def rank(self, prompts: Sessions, k: int) -> npt.NDArray[np.int64]:
        """Ids of the k best items for each prompt, best first, without the prompt's own; shape (prompts, k).

        Equally good items come by lower id. Where fewer than k items have a claim, the rest is 0.
        """
        ...
