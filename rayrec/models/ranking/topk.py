"""The k best items of a catalogue by dot product, for many sessions, in bounded memory.

Neither (B, V) scores nor anything of their size is ever whole: sessions go in blocks and the catalogue in chunks, whose
best are merged into the best so far. Shapes: B sessions, V items, D width, K list, C a chunk of items, N groups of G
columns.
"""

from typing import Final

import torch
from torch import Tensor

from rayrec.sessions import Sessions

_CHUNK: Final = 2**14  # items scored at a time
_SCORES: Final = 2**21  # scores held at a time: 8 MB in fp32
_GROUP: Final = 8  # columns of which the largest is looked for first


def rank(
    users_BD: Tensor,
    items_VD: Tensor,
    k: int,
    *,
    prompts: Sessions | None = None,
    known_V: Tensor | None = None,
    scores_at_once: int = _SCORES,
) -> Tensor:
    """``Catalogue.rank`` of a catalogue that is asked once."""
    return Catalogue(items_VD, known_V).rank(users_BD, k, prompts=prompts, scores_at_once=scores_at_once)


class Catalogue:
    """The vectors of items that lists may hold, for any number of sessions."""

    @torch.no_grad()
    def __init__(self, items_VD: Tensor, known_V: Tensor | None = None) -> None:
        """Row v of ``items_VD``, which has no row for padding, is the item with id v + 1.

        ``known_V``, bool: items that are False, such as those never seen in training, are in no list. None: all are.
        """
        self._vectors_CD = items_VD
        self._ids_C = torch.arange(1, len(items_VD) + 1, device=items_VD.device)
        self._row_V = self._ids_C - 1
        if known_V is not None and not known_V.all():
            self._vectors_CD, self._ids_C = items_VD[known_V], self._ids_C[known_V]
            self._row_V = (known_V.cumsum(0) - 1).masked_fill(~known_V, -1)

    @torch.no_grad()
    def rank(
        self, users_BD: Tensor, k: int, *, prompts: Sessions | None = None, scores_at_once: int = _SCORES
    ) -> Tensor:
        """Ids of the k items of largest dot product with each user vector, largest first; int64, shape (B, k).

        Items of equal score come by lower id; where fewer than k items are left, the rest is 0. Scores are of the dtype
        given, and half precision makes many of them equal; their last bit may depend on the device and on how many are
        computed at once, as that of any matrix product. The nearest items by Euclidean distance are those of vectors
        (u, 1) and (x, -|x|^2 / 2).

        Args:
            users_BD: one vector for each session.
            k: length of the lists.
            prompts: what each session holds already, which is left out of its list; None: nothing.
            scores_at_once: how many scores are held at a time. A GPU wants more than the default, 2^28 or so.

        Raises:
            ValueError: there are not as many prompts as vectors, a prompt's id is above V, or a score is NaN.
        """
        own = None if prompts is None else _Own(prompts, len(users_BD), self._row_V)
        chunk = max(1, min(len(self._vectors_CD), _CHUNK, scores_at_once))
        size = max(1, scores_at_once // chunk)
        ids_BK = users_BD.new_zeros((len(users_BD), k), dtype=torch.int64)
        # One buffer for all scores: fresh memory costs as much as the product that fills it.
        scores = users_BD.new_empty(min(size, len(users_BD)) * chunk)
        for start in range(0, len(users_BD), size):
            block_BD = users_BD[start : start + size]
            best: tuple[Tensor, Tensor] | None = None
            for low in range(0, len(self._vectors_CD), chunk):
                vectors_CD = self._vectors_CD[low : low + chunk]
                here_BC = scores[: len(block_BD) * len(vectors_CD)].view(len(block_BD), len(vectors_CD))
                scores_BC = torch.mm(block_BD, vectors_CD.T, out=here_BC)
                if own is not None:
                    own.mask_(scores_BC, start, low)
                values, columns = top_k(scores_BC, k)
                best = _merged(best, (values, columns + low), k)
            if best is not None:
                values_BK, rows_BK = best
                found_BK = torch.where(values_BK > -torch.inf, self._ids_C[rows_BK], 0)
                ids_BK[start : start + size, : found_BK.shape[1]] = found_BK
        return ids_BK


def top_k(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their columns, largest first, equal ones by lower column; (B, min(k, C)).

    ``torch.topk`` says nothing about equal scores. Asked for one more than k, it tells whether the cut goes through
    equal ones; only such rows, rare where scores are learned, are looked at again. The order within the list is a
    stable sort of k numbers. Where -inf is among the k largest, its columns are any.

    Raises:
        ValueError: a score is NaN, which would be the largest of all.
    """
    values, columns = _largest(scores_BC, min(k + 1, scores_BC.shape[1]))
    if values.isnan().any():
        raise ValueError("a score is NaN: the model has diverged, or a vector is not finite")
    if values.shape[1] > k:
        cut_B = values[:, k - 1]
        tied = ((cut_B == values[:, k]) & (cut_B > -torch.inf)).nonzero()[:, 0]
        columns = columns[:, :k]
        if len(tied):
            columns[tied] = _lowest_columns(scores_BC[tied], cut_B[tied, None], k)
    columns = columns.sort(dim=1).values
    values, order = scores_BC.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _largest(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``scores_BC.topk(k)``, which is slow where it reads many scores, asked of few.

    Columns n, n + N, n + 2N, ... are group n. Fewer than k groups hold a score above the row's k-th largest, so the k
    groups of largest maxima hold k scores as large as any.
    """
    groups = scores_BC.shape[1] // _GROUP
    if groups <= k:
        return scores_BC.topk(k)
    grouped_BGN = scores_BC[:, : _GROUP * groups].view(len(scores_BC), _GROUP, groups)
    group_BK = grouped_BGN.amax(dim=1).topk(k, sorted=False).indices
    near = grouped_BGN.gather(2, group_BK[:, None].expand(-1, _GROUP, -1)).flatten(1)
    values, place = torch.cat([near, scores_BC[:, _GROUP * groups :]], dim=1).topk(k)
    columns = place // k * groups + group_BK.gather(1, place % k)
    return values, torch.where(place < near.shape[1], columns, place - near.shape[1] + _GROUP * groups)


def _lowest_columns(scores_RC: Tensor, cut_R1: Tensor, k: int) -> Tensor:
    """The k columns above the cut or at it, of those at it the lowest; ascending, shape (R, k)."""
    above, equal = scores_RC > cut_R1, scores_RC == cut_R1
    wanted_R1 = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= wanted_R1))
    return chosen.nonzero()[:, 1].view(-1, k)


def _merged(best: tuple[Tensor, Tensor] | None, more: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k best of two lists of (values, rows), all rows of ``best`` below those of ``more``."""
    if best is None:
        return more
    values, rows = (torch.cat(pair, dim=1) for pair in zip(best, more, strict=True))
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], rows.gather(1, order[:, :k])


class _Own:
    """The prompts' own items as tensors on the scores' device, to take them out of the scores."""

    def __init__(self, prompts: Sessions, users: int, row_V: Tensor) -> None:
        """``row_V``: where each item's scores are, below 0 nowhere."""
        if len(prompts) != users:
            raise ValueError(f"{len(prompts)} prompts for {users} user vectors")
        prompts.require(len(row_V))
        self.offsets = prompts.offsets
        self.session = torch.tensor(prompts.owners, device=row_V.device)
        self.row = row_V[torch.tensor(prompts.items, dtype=torch.int64, device=row_V.device) - 1]

    def mask_(self, scores_BC: Tensor, start: int, low: int) -> None:
        """Sets the own items of sessions start .. start + B - 1 to -inf, where they are among the chunk's."""
        first, last = self.offsets[start], self.offsets[start + len(scores_BC)]
        session, column = self.session[first:last] - start, self.row[first:last] - low
        inside = (column >= 0) & (column < scores_BC.shape[1])
        places = (session * scores_BC.shape[1] + column)[inside]
        scores_BC.view(-1).index_fill_(0, places, -torch.inf)
