"""LLMSeqPrompt: what a language model said -> items of the catalogue, the nearest by name where it is none.

Paper: https://arxiv.org/abs/2402.01339, section 4. Its published code, where what is offered is to be ranked, goes by
likeness of spelling instead. Shapes: S sessions, K places, I items, D width.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrec.models.reductions import Rows
from rayrec.sessions import Index, IntArray, Sessions

Said = Sequence[str]  # the names that one session's answer holds, in its order


@dataclass(frozen=True)
class Matched:
    """Lists of distinct items, none of them in its session's prompt, ending in 0; and how they came about."""

    lists_SK: Index
    said_S: Index  # names that were looked at: at most K a session
    unknown_S: Index  # of them those that no item has
    barred_S: Index  # those of an item that was named before, is in the prompt or was not offered


class NameMatcher:
    """Finds items by the names that the prompts call them, else by the likeness of name embeddings."""

    def __init__(self, names: Sequence[str], embeddings_ID: Rows) -> None:
        """``names[i]`` and row i are of item i + 1; rows have unit length, or are zero: no name is like theirs.

        Raises:
            ValueError: there are not as many rows as names.
        """
        if len(names) != len(embeddings_ID):
            raise ValueError(f"{len(names)} names, {len(embeddings_ID)} embeddings")
        self._embeddings_ID, self._named_I = embeddings_ID, embeddings_ID.any(axis=1)
        self._items: dict[str, list[int]] = defaultdict(list)  # several items may have one name: the lower id first
        for item, name in enumerate(names, start=1):
            self._items[name].append(item)

    def unknown(self, said: Sequence[Said]) -> list[str]:
        """The distinct names that no item has, sorted: those whose embeddings ``match`` wants."""
        return sorted({name for names in said for name in names} - self._items.keys())

    def match(
        self,
        said: Sequence[Said],
        prompts: Sessions,
        k: int,
        unknown: Mapping[str, NDArray[np.float32]],
        *,
        offered: Sessions | None = None,
        replaced_last: bool = False,
    ) -> Matched:
        """The items that each session's answer means; what it says beyond ``k`` names is not looked at.

        An item that is named has its place. Where a name is unknown or its item barred, the nearest of the items left
        stands for it, by dot product of embeddings: in its place, or with ``replaced_last``, as the paper's code does
        for single items, behind all that were named.

        Args:
            said: the names of each answer, cleaned as the names of the catalogue.
            prompts: the items of each prompt.
            k: length of the lists.
            unknown: embeddings of what ``unknown`` gives; one of zeros is like nothing and leaves no item.
            offered: the items that each answer had to choose from; None: the catalogue.
            replaced_last: where the items go that stand for something else.
        """
        lists_SK = np.zeros((len(said), k), np.int64)
        counts_S3 = np.zeros((len(said), 3), np.int64)
        choices = offered.each() if offered is not None else [None] * len(said)
        for row, (names, own, choice) in enumerate(zip(said, prompts.each(), choices, strict=True)):
            items, counts_S3[row] = self._matched(names[:k], self._free(own, choice), unknown, replaced_last)
            lists_SK[row, : len(items)] = items
        return Matched(lists_SK, *counts_S3.T)

    def _free(self, own: IntArray, choice: IntArray | None) -> NDArray[np.bool_]:
        """Whether an item may still be in the list; shape (I + 1,), by id."""
        free = np.full(len(self._embeddings_ID) + 1, choice is None)
        if choice is not None:
            free[choice] = True
        free[0] = False
        free[own] = False
        return free

    def _matched(
        self, names: Said, free: NDArray[np.bool_], unknown: Mapping[str, NDArray[np.float32]], replaced_last: bool
    ) -> tuple[list[int], tuple[int, int, int]]:
        """The list of one session; names that were looked at, unknown and barred ones."""
        found: list[int] = []
        for name in names:
            item = next((item for item in self._items.get(name, ()) if free[item]), 0)
            free[item] = False
            found.append(item)
        replaced = [place for place, item in enumerate(found) if not item]
        if replaced:
            nearest = self._nearest([self._vector(names[place], unknown) for place in replaced], free)
            for place, item in zip(replaced, nearest, strict=True):
                found[place] = item
        strange = sum(names[place] not in self._items for place in replaced)
        order = sorted(range(len(found)), key=replaced.__contains__) if replaced_last else range(len(found))
        return [found[at] for at in order if found[at]], (len(names), strange, len(replaced) - strange)

    def _vector(self, name: str, unknown: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        items = self._items.get(name)
        vector: NDArray[np.float32] = self._embeddings_ID[items[0] - 1] if items else unknown[name]
        return vector

    def _nearest(self, vectors: Sequence[NDArray[np.float32]], free: NDArray[np.bool_]) -> list[int]:
        """For one vector after another the free item most like it, which is then taken; 0 where there is none."""
        left_I = free[1:] & self._named_I
        found: list[int] = []
        for vector, likeness_I in zip(vectors, np.stack(vectors) @ self._embeddings_ID.T, strict=True):
            row = int(np.argmax(np.where(left_I, likeness_I, -np.inf)))
            is_there = bool(left_I[row] and vector.any())
            left_I[row] &= not is_there
            found.append(row + 1 if is_there else 0)
        return found
