"""The tensors that pass from data to models.

Shapes: B rows, L history items, T tokens, K soft tokens a vector, F features.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from torch import Tensor

FEATURES: Final = 41  # F: numbers by which the feature floor describes a row


@dataclass(frozen=True)
class Prompt:
    """Token ids padded on the right, where causal attention cannot see the padding."""

    tokens_BT: Tensor  # int64
    length_B: Tensor  # int64, tokens before the padding
    soft_at_B2K: Tensor | None = None  # int64, positions of the user's and the item's soft tokens; None: text only
    answer_at_B: Tensor | None = None  # int64, where an answer starts that is learned; None: the prompt alone

    def to(self, device: torch.device) -> "Prompt":
        return replace(self, **_on(device, self))


@dataclass(frozen=True)
class SplitPrompt:
    """Prompts cut in two, so that rows of equal history go through their common part once.

    U distinct prefixes, S tokens of a row's own suffix; both padded on the right, and a suffix is never empty.
    """

    prefix_UP: Tensor  # int64
    prefix_length_U: Tensor
    prefix_of_B: Tensor  # int64, which prefix a row's suffix stands behind
    suffix_BS: Tensor  # int64
    suffix_length_B: Tensor
    soft_at_B2K: Tensor | None = None  # int64, from the suffix's start on, below 0 in the prefix; None: text only

    def to(self, device: torch.device) -> "SplitPrompt":
        return replace(self, **_on(device, self))


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass."""

    user_B: Tensor  # int64, 1 and above; 0: a user whom no table knows
    history_BL: Tensor  # int64 item ids, oldest first, left-padded with 0
    item_B: Tensor  # int64
    label_B: Tensor  # float32, 1 = like
    prompt: Prompt | SplitPrompt | None = None
    label_BL: Tensor | None = None  # int64, of the history: 1 disliked, 2 liked, 0 padding; None: liked throughout
    floor_B: Tensor | None = None  # float32, the feature floor's logit; None where no score starts from it
    features_BF: Tensor | None = None  # float32, the feature floor's, standardised; None where no mapper reads them

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        return replace(self, prompt=self.prompt and self.prompt.to(device), **_on(device, self))

    def without_prompts(self, rows: Tensor) -> "Batch":
        """Some of the rows, for an encoder alone."""
        return replace(self, prompt=None, **{name: value[rows] for name, value in _tensors(self).items()})

    @property
    def rows(self) -> int:
        return self.item_B.numel()

    @property
    def cells(self) -> int:
        """Sequence positions, padding included."""
        if isinstance(self.prompt, SplitPrompt):
            return self.prompt.prefix_UP.numel() + self.prompt.suffix_BS.numel()
        return (self.history_BL if self.prompt is None else self.prompt.tokens_BT).numel()

    @property
    def filled(self) -> int:
        """Sequence positions that hold something."""
        if self.prompt is None:
            return int((self.history_BL > 0).sum())
        if isinstance(self.prompt, SplitPrompt):
            return int(self.prompt.prefix_length_U.sum() + self.prompt.suffix_length_B.sum())
        return int(self.prompt.length_B.sum())


def _on(device: torch.device, holder: "Prompt | SplitPrompt | Batch") -> dict[str, Any]:
    return {name: value.to(device) for name, value in _tensors(holder).items()}


def _tensors(holder: "Prompt | SplitPrompt | Batch") -> dict[str, Tensor]:
    """The tensors of a dataclass by name."""
    found = {field.name: getattr(holder, field.name) for field in fields(holder)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
