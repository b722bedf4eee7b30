"""SASRecLLM: encoder, mapper and backbone composed; a stage or a baseline holds only the pieces it needs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rayrec.batch import Batch, Prompt, SplitPrompt
from rayrec.config import Config
from rayrec.config.model import EncoderConfig
from rayrec.models.averaged import Averaged
from rayrec.models.backbone import Backbone, Prefixes
from rayrec.models.bert4rec import BERT4Rec
from rayrec.models.encoder import Encoder
from rayrec.models.factors import MF, NeuMF
from rayrec.models.gru import GRU
from rayrec.models.loading import empty_backbone, load_backbone
from rayrec.models.lora import add_lora
from rayrec.models.mapper import Mapper
from rayrec.models.sasrec import SASRec
from rayrec.stages import EncoderKind, Part

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class SASRecLLM(nn.Module):
    """The batch decides the path: no prompt: the encoder alone; a text prompt: the backbone; a hybrid one: all."""

    def __init__(self, encoder: Encoder | None, mapper: Mapper | None, backbone: Backbone | None) -> None:
        super().__init__()
        self.encoder, self.mapper, self.backbone = encoder, mapper, backbone

    def forward(self, batch: Batch, read: Prefixes | None = None) -> Tensor:
        """Logit of "like" for each row, fp32, shape (B,); ``read`` of the batch's prefixes, where that was done."""
        if batch.prompt is None:
            assert self.encoder is not None
            return self.encoder.score(batch)
        answer_B = self._answer(batch, read)
        if self.mapper is None or self.mapper.offset is None:
            return answer_B
        score_B: Tensor = self.mapper.offset(answer_B, self._start(batch, self.mapper))
        return score_B

    def _start(self, batch: Batch, mapper: Mapper) -> Tensor | None:
        """What the language model's logit is added to, shape (B,)."""
        if not mapper.starts_from_encoder:
            return batch.floor_B
        assert self.encoder is not None
        return self.encoder.score(batch)

    def read_prefixes(self, batch: Batch) -> Prefixes | None:
        """What layers that stay as they are make of a split batch's prefixes; a soft token there must not learn.

        None where the architecture's attention cannot be replaced by one that parts prompts.
        """
        assert self.backbone is not None and isinstance(batch.prompt, SplitPrompt)
        if not self.backbone.parts_suffixes:
            return None
        prefix_UPH, _ = self._embed_split(batch, batch.prompt)
        return self.backbone.read_prefixes(prefix_UPH)

    def _answer(self, batch: Batch, read: Prefixes | None = None) -> Tensor:
        """The language model's logit, shape (B,)."""
        assert self.backbone is not None and batch.prompt is not None
        if isinstance(batch.prompt, SplitPrompt):
            prefix_UPH, suffix_BSH = self._embed_split(batch, batch.prompt)
            learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.backbone.parameters())
            return self.backbone.answer_split(prefix_UPH, suffix_BSH, batch.prompt, prefix_learns=learns, read=read)
        embeddings = self._embed(batch, batch.prompt)
        return self.backbone.answer(embeddings, batch.prompt.length_B)

    def _embed(self, batch: Batch, prompt: Prompt) -> Tensor:
        """Word embeddings (B, T, H), with the soft tokens in their places."""
        assert self.backbone is not None
        embeddings = self.backbone.embed(prompt.tokens_BT)
        if prompt.soft_at_B2K is None:
            return embeddings
        row_B11 = torch.arange(batch.rows, device=embeddings.device)[:, None, None]
        soft_B2KH = self.soft_tokens(batch).to(embeddings.dtype)
        return embeddings.index_put((row_B11, prompt.soft_at_B2K), soft_B2KH)

    def _embed_split(self, batch: Batch, prompt: SplitPrompt) -> tuple[Tensor, Tensor]:
        """The same of prefixes (U, P, H) and suffixes (B, S, H)."""
        assert self.backbone is not None
        prefix_UPH, suffix_BSH = self.backbone.embed(prompt.prefix_UP), self.backbone.embed(prompt.suffix_BS)
        if prompt.soft_at_B2K is None:
            return prefix_UPH, suffix_BSH
        soft_B2KH = self.soft_tokens(batch).to(suffix_BSH.dtype)
        row_B1 = torch.arange(batch.rows, device=soft_B2KH.device)[:, None]
        user_at_BK, item_at_BK = prompt.soft_at_B2K.unbind(1)
        suffix_BSH = suffix_BSH.index_put((row_B1, item_at_BK), soft_B2KH[:, 1])
        if not bool((user_at_BK < 0).any()):
            return prefix_UPH, suffix_BSH.index_put((row_B1, user_at_BK), soft_B2KH[:, 0])
        of_B1 = prompt.prefix_of_B[:, None]  # rows of one prefix are one user's: whichever is put last is the same
        user_at_BK = prompt.prefix_length_U[of_B1] + user_at_BK
        return prefix_UPH.index_put((of_B1, user_at_BK), soft_B2KH[:, 0]), suffix_BSH

    def soft_tokens(self, batch: Batch) -> Tensor:
        """The user's and the target item's soft tokens, shape (B, 2, K, H).

        Features are of both, and the user's tokens may stand where rows of several items share them: the item's have
        them.
        """
        assert self.encoder is not None and self.mapper is not None
        assert self.mapper.features is None or batch.features_BF is not None, "the batch holds no features to read"
        user_BD, item_BD = self._user_vectors(batch), self.encoder.item_vectors(batch.item_B)
        return torch.stack([self.mapper(user_BD), self.mapper(item_BD, batch.features_BF)], dim=1)

    def _user_vectors(self, batch: Batch) -> Tensor:
        """Shape (B, D). Rows behind one prefix liked the same: where nothing tells them apart, it is read once."""
        assert self.encoder is not None
        is_their_own = self.encoder.training or batch.label_BL is not None  # by dropout, or by what else was rated
        if is_their_own or not isinstance(batch.prompt, SplitPrompt):
            return self.encoder.user_vectors(batch)
        of_B = batch.prompt.prefix_of_B
        any_row_U = of_B.new_zeros(len(batch.prompt.prefix_UP))
        any_row_U[of_B] = torch.arange(batch.rows, device=of_B.device)
        return self.encoder.user_vectors(batch.without_prompts(any_row_U))[of_B]

    def parts(self) -> dict[Part, dict[str, nn.Parameter]]:
        """Part -> name within the part -> parameter. All other parameters are the backbone's own, always frozen."""
        found: dict[Part, dict[str, nn.Parameter]] = {}
        if self.encoder is not None:
            found[Part.ENCODER] = dict(self.encoder.named_parameters())
        if self.mapper is not None:
            found[Part.MAPPER] = dict(self.mapper.named_parameters())
        if self.backbone is not None:
            lora = {name: p for name, p in self.backbone.decoder.named_parameters() if ".lora_" in name}
            if lora:
                found[Part.LORA] = lora
        return found

    def freeze_all_but(self, trained: Collection[Part]) -> None:
        """Hierarchical freezing, section 3.2.2: frozen parts lose their gradient, ``set_mode`` puts them in eval."""
        for part, parameters in self.parts().items():
            for parameter in parameters.values():
                parameter.requires_grad_(part in trained)

    def set_mode(self, trained: Collection[Part]) -> None:
        """Train mode (dropout on) for the trained parts only; ``set_mode(())`` is plain evaluation."""
        self.eval()
        if self.encoder is not None:
            self.encoder.train(Part.ENCODER in trained)
        if self.backbone is not None:
            # Gradient checkpointing works in train mode only; the one dropout in a decoder with LoRA is LoRA's.
            self.backbone.train(bool(trained))
            for name, module in self.backbone.named_modules():
                if name.endswith("lora_dropout"):
                    module.train(Part.LORA in trained)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the data and the backbone decide about a model."""

    users: int
    items: int
    max_len: int
    backbone: Path | None = None  # its folder; where the model stays empty, its config.json will do
    answers: tuple[int, int] | None = None  # token ids of "Yes" and "No"
    empty: bool = False  # nothing loaded: for counting on the meta device


def build_encoder(config: EncoderConfig, shape: ModelShape) -> Encoder:
    """A fresh encoder of the configured kind, of one member or more; it draws its initial weights."""
    if config.members == 1:
        return _build_one(config, shape)
    return Averaged(config, partial(_build_one, config, shape), items=shape.items, max_len=shape.max_len)


def _build_one(config: EncoderConfig, shape: ModelShape) -> Encoder:
    if config.kind is EncoderKind.MF:
        return MF(config, users=shape.users, items=shape.items, max_len=shape.max_len)
    if config.kind is EncoderKind.NEUMF:
        return NeuMF(config, users=shape.users, items=shape.items, max_len=shape.max_len)
    if config.kind is EncoderKind.GRU:
        return GRU(config, items=shape.items, max_len=shape.max_len)
    if config.kind is EncoderKind.BERT4REC:
        return BERT4Rec(config, items=shape.items, max_len=shape.max_len)
    return SASRec(config, items=shape.items, max_len=shape.max_len)


def build(
    config: Config, shape: ModelShape, *, parts: Collection[Part], with_backbone: bool, speaks: bool = False
) -> SASRecLLM:
    """A fresh model with ``parts``; seed torch first, since this draws the initial weights.

    ``speaks``: its backbone learns answers in words.
    """
    encoder = build_encoder(config.encoder, shape) if Part.ENCODER in parts else None
    backbone = None
    if with_backbone:
        assert shape.backbone is not None and shape.answers is not None
        quantised = config.backbone.quantised is not None
        load = empty_backbone if shape.empty else partial(load_backbone, quantised=quantised)
        backbone = load(
            shape.backbone,
            answers=shape.answers,
            yes_only=config.backbone.score == "yes",
            dtype=DTYPES[config.engine.precision],
            checkpointing=config.engine.gradient_checkpointing,
            speaks=speaks,
        )
        backbone.replace_attention(products=config.fast.plain_attention)
        if Part.LORA in parts:
            add_lora(backbone, config.lora)
    mapper = None
    if Part.MAPPER in parts:
        assert backbone is not None
        mapper = Mapper(config.mapper, width=config.encoder.vector_width, hidden=backbone.hidden)
    return SASRecLLM(encoder, mapper, backbone)


def calibrate_mapper(model: SASRecLLM) -> None:
    """Start a new mapper at the scale of the backbone's words, measured on the encoder's item vectors.

    A fresh encoder's are those that were drawn for it; from there both learn.
    """
    assert model.encoder is not None and model.mapper is not None and model.backbone is not None
    item_N = torch.arange(1, model.encoder.items + 1)
    model.mapper.match_spread(model.encoder.item_vectors(item_N), model.backbone.embedding_spread())


def trainable(model: SASRecLLM, trained: Collection[Part]) -> Mapping[str, nn.Parameter]:
    """``part.name`` -> parameter for the trained parts, in a fixed order."""
    return {
        f"{part}.{name}": parameter
        for part, parameters in sorted(model.parts().items())
        if part in trained
        for name, parameter in parameters.items()
    }
