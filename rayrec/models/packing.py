"""Prompts that share a prefix as one sequence: the prefix, then the suffixes, each seeing the prefix and itself.

A suffix keeps the positions that it has behind its prefix alone, so every row's states are those of its own prompt.
Shapes: U prefixes, B rows, S suffix tokens, T tokens of the longest sequence.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rayrec.batch import SplitPrompt
from rayrec.models.products import Mask

_PADDING, _PREFIX = -1, 0


class Pieces(NamedTuple):
    """Sequences one behind another, without padding; each sees nothing but itself."""

    lengths: list[int]
    masks: list[Mask]  # of shape (1, 1, T, T) for a sequence of T


@dataclass(frozen=True)
class Packed:
    """Where everything lies."""

    last_B: Tensor  # place of a row's last token in its prefix's sequence
    filled_BS: Tensor  # suffix tokens that are no padding
    places: tuple[Tensor, Tensor]  # sequence and place of each of those
    part_UT: Tensor  # 0: prefix; 1, 2, ...: suffixes; -1: padding
    position_UT: Tensor

    @property
    def is_plain(self) -> bool:
        """No prefix is shared: causal attention is all that is needed."""
        return len(self.last_B) == len(self.part_UT)

    @property
    def filled(self) -> Tensor:
        """Places that are no padding."""
        return self.part_UT != _PADDING

    def pieces(self) -> Pieces:
        """The sequences without their padding."""
        lengths = self.filled.sum(1).tolist()
        masks = zip(torch.split(self.mask(), 1), lengths, strict=True)
        return Pieces(lengths, [Mask(mask_11TT[..., :length, :length]) for mask_11TT, length in masks])

    def mask(self) -> Tensor:
        """True where attention is allowed, shape (U, 1, T, T).

        Padding sees prefixes, which keeps its softmax finite.
        """
        length = self.part_UT.shape[1]
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=self.part_UT.device).tril()
        own_UTT = self.part_UT[:, :, None] == self.part_UT[:, None]
        return (causal_TT & (own_UTT | (self.part_UT[:, None] == _PREFIX)))[:, None]


def pack(prompt: SplitPrompt) -> Packed:
    """Lay the suffixes of each prefix one behind the other, in the order of the rows."""
    of_B, length_B = prompt.prefix_of_B, prompt.suffix_length_B
    device = of_B.device
    earlier_BB = (of_B[:, None] == of_B).tril(-1)
    behind_B = prompt.prefix_length_U[of_B]
    start_B = behind_B + (earlier_BB * length_B).sum(1)
    number_B = earlier_BB.sum(1) + 1
    total = int((start_B + length_B).max())
    column_T = torch.arange(total, device=device)
    in_prefix_UT = column_T < prompt.prefix_length_U[:, None]
    part_UT = torch.where(in_prefix_UT, _PREFIX, _PADDING)
    position_UT = column_T.repeat(len(part_UT), 1)
    column_S = torch.arange(prompt.suffix_BS.shape[1], device=device)
    filled_BS = column_S < length_B[:, None]
    places = (of_B[:, None].expand_as(filled_BS)[filled_BS], (start_B[:, None] + column_S)[filled_BS])
    part_UT[places] = number_B[:, None].expand_as(filled_BS)[filled_BS]
    position_UT[places] = (behind_B[:, None] + column_S)[filled_BS]
    return Packed(start_B + length_B - 1, filled_BS, places, part_UT, position_UT)


def joined(packed: Packed, prefix_UPH: Tensor, suffix_BSH: Tensor) -> Tensor:
    """The embeddings in their places, shape (U, T, H)."""
    in_prefix_UP = packed.part_UT[:, : prefix_UPH.shape[1]] == _PREFIX
    whole_UTH = prefix_UPH.new_zeros(*packed.part_UT.shape, prefix_UPH.shape[2])
    whole_UTH[:, : prefix_UPH.shape[1]][in_prefix_UP] = prefix_UPH[in_prefix_UP]
    return whole_UTH.index_put(packed.places, suffix_BSH[packed.filled_BS])
