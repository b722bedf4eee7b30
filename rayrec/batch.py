"""The tensors that pass from data to models. Shapes: B rows, L history items, T tokens, K soft tokens a vector."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Token ids padded on the right, where causal attention cannot see the padding."""

    tokens_BT: Tensor  # int64
    length_B: Tensor  # int64, tokens before the padding
    soft_at_B2K: Tensor | None = None  # int64, positions of the user's and the item's soft tokens; None: text only


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass."""

    history_BL: Tensor  # int64 item ids, oldest first, left-padded with 0
    item_B: Tensor  # int64
    label_B: Tensor  # float32, 1 = like
    prompt: Prompt | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        prompt = self.prompt and Prompt(
            self.prompt.tokens_BT.to(device),
            self.prompt.length_B.to(device),
            None if self.prompt.soft_at_B2K is None else self.prompt.soft_at_B2K.to(device),
        )
        return replace(
            self,
            history_BL=self.history_BL.to(device),
            item_B=self.item_B.to(device),
            label_B=self.label_B.to(device),
            prompt=prompt,
        )

    @property
    def rows(self) -> int:
        return self.item_B.numel()

    @property
    def cells(self) -> int:
        """Sequence positions that are computed, padding included."""
        return (self.history_BL if self.prompt is None else self.prompt.tokens_BT).numel()

    @property
    def filled(self) -> int:
        """Sequence positions that hold something."""
        if self.prompt is None:
            return int((self.history_BL > 0).sum())
        return int(self.prompt.length_B.sum())
