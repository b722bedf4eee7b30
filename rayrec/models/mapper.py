"""The bridge from the encoder's space to the language model's: paper section 3.1.2."""

import torch
from torch import Tensor, nn

from rayrec.batch import FEATURES
from rayrec.config.model import ENCODER, MapperConfig
from rayrec.models.offset import Offset


class Mapper(nn.Module):
    """Two-layer MLP, shared by users and items: width -> width x expansion -> ReLU -> K tokens of the LLM's width H.

    Where the language model's score starts from an offset, its weights are learned and kept with these. Where it reads
    features, the first layer has inputs for them beside the vector's. Their weights start at zero, so that a mapper
    begins as one that reads none.
    """

    def __init__(self, config: MapperConfig, *, width: int, hidden: int) -> None:
        super().__init__()
        self.tokens, self.hidden = config.tokens, hidden
        self.expand = nn.Linear(width, width * config.expansion)
        self.project = nn.Linear(width * config.expansion, hidden * config.tokens)
        self.features = nn.Linear(FEATURES, width * config.expansion, bias=False) if config.features else None
        if self.features is not None:
            nn.init.zeros_(self.features.weight)
        self.offset = Offset() if config.offset else None
        self.starts_from_encoder = config.offset == ENCODER

    def forward(self, vectors_BD: Tensor, features_BF: Tensor | None = None) -> Tensor:
        """Shape (B, D) -> soft tokens (B, K, H); without ``features`` as where all of them are at their means."""
        wide = self.expand(vectors_BD)
        if self.features is not None and features_BF is not None:
            wide = wide + self.features(features_BF.to(wide.dtype))
        soft = self.project(torch.relu(wide))
        return soft.view(-1, self.tokens, self.hidden)  # type: ignore[no-any-return]

    @torch.no_grad()
    def match_spread(self, vectors_ND: Tensor, std: float) -> None:
        """Scale the last layer so that the soft tokens of ``vectors`` spread like the LLM's own token embeddings.

        Soft tokens far larger or smaller than words would put the frozen LLM off its ground from the first step on.
        """
        self.project.bias.zero_()
        self.project.weight.mul_(std / self(vectors_ND).std().clamp_min(1e-12))
