"""The rows of the result tables, as a table.

Section numbers refer to the SASRecLLM paper: an ensemble of its ablation's systems (6.2).
"""

from dataclasses import dataclass
from types import MappingProxyType

from rayrec.stages import ENCODERS, EncoderKind, Name, Part, StageName, Stream, Task

_NEXT_ITEM = frozenset({Task.NEXT_ITEM})


class SystemName(Name):
    YES = "always_yes"
    NO = "always_no"
    BIAS = "bias_floor"
    MARKOV = "markov"
    FEATURES = "feature_floor"
    MOST_POPULAR = "most_popular"
    SKNN = "sknn"
    V_SKNN = "v_sknn"
    LLMSEQSIM = "llmseqsim"
    EMBEDDING_ENSEMBLE = "embedding_ensemble"
    LLMSEQSIM_POPULARITY = "llmseqsim_popularity"
    LLMSEQPROMPT = "llmseqprompt"
    ICL = "icl"
    TALLREC = "tallrec"
    SASREC = "sasrec"
    LLMSEQSIM_SEQUENTIAL = "llmseqsim_sequential"
    SASRECLLM = "sasrecllm"
    ENSEMBLE = "ensemble"


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """A row of the result table: its parts as trained by ``after`` and that stage's ancestors."""

    title: str
    parts: frozenset[Part] = frozenset()
    after: StageName | None = None
    reads: Stream | None = None  # None: no neural model of its own, but `rayrec.floors`, `.rankers`, `.ensemble`
    members: tuple[SystemName, ...] = ()  # whose scores it pools; experiments have it, runs do not
    tasks: frozenset[Task] = frozenset({Task.CLICK})


SYSTEMS = MappingProxyType(
    {
        SystemName.YES: SystemSpec(title="Always yes"),
        SystemName.NO: SystemSpec(title="Always no"),
        SystemName.BIAS: SystemSpec(title="Bias floor"),
        SystemName.MARKOV: SystemSpec(title="MC"),
        SystemName.FEATURES: SystemSpec(title="Feature floor"),
        SystemName.MOST_POPULAR: SystemSpec(title="MostPopular", tasks=_NEXT_ITEM),
        SystemName.SKNN: SystemSpec(title="SKNN", tasks=_NEXT_ITEM),
        SystemName.V_SKNN: SystemSpec(title="V-SKNN", tasks=_NEXT_ITEM),
        SystemName.LLMSEQSIM: SystemSpec(title="LLMSeqSim", tasks=_NEXT_ITEM),
        SystemName.EMBEDDING_ENSEMBLE: SystemSpec(title="EmbeddingEnsemble", tasks=_NEXT_ITEM),
        SystemName.LLMSEQSIM_POPULARITY: SystemSpec(title="LLMSeqSim&Popularity", tasks=_NEXT_ITEM),
        SystemName.LLMSEQPROMPT: SystemSpec(
            title="LLMSeqPrompt",
            parts=frozenset({Part.LORA}),
            after=StageName.TUNE_ANSWERS,
            reads=Stream.ANSWER_PROMPTS,
            tasks=_NEXT_ITEM,
        ),
        SystemName.ICL: SystemSpec(title="ICL", reads=Stream.TEXT_PROMPTS),
        SystemName.TALLREC: SystemSpec(
            title="TALLRec", parts=frozenset({Part.LORA}), after=StageName.TUNE_LORA, reads=Stream.TEXT_PROMPTS
        ),
        SystemName.SASREC: SystemSpec(
            title="SASRec",
            parts=frozenset({Part.ENCODER}),
            after=StageName.PRETRAIN_ENCODER,
            reads=Stream.INTERACTIONS,
            tasks=frozenset(Task),
        ),
        SystemName.LLMSEQSIM_SEQUENTIAL: SystemSpec(
            title="LLMSeqSim&SASRec",
            parts=frozenset({Part.ENCODER}),
            after=StageName.PRETRAIN_ENCODER,
            reads=Stream.INTERACTIONS,
            tasks=_NEXT_ITEM,
        ),
        SystemName.SASRECLLM: SystemSpec(
            title="SASRecLLM",
            parts=frozenset(Part),
            after=StageName.TUNE_HYBRID,
            reads=Stream.HYBRID_PROMPTS,
            tasks=frozenset(Task),
        ),
        SystemName.ENSEMBLE: SystemSpec(  # section 6.2
            title="Ensemble", members=(SystemName.SASREC, SystemName.TALLREC, SystemName.SASRECLLM)
        ),
    }
)


def titles(encoder: EncoderKind, task: Task = Task.CLICK, *, from_names: bool = False) -> dict[SystemName, str]:
    """System of a task -> its name in tables; what is named after SASRec is named after the encoder in its place.

    Of next items, an encoder whose items start ``from_names`` is LLM2SASRec and so on, https://arxiv.org/abs/2402.01339.
    """
    usual, spec = ENCODERS[EncoderKind.SASREC].title, ENCODERS[encoder]
    own = spec.title
    if task is Task.NEXT_ITEM:
        own = f"{'LLM2' if from_names else ''}{spec.title_of_next_items or spec.title}"
    return {name: system.title.replace(usual, own) for name, system in SYSTEMS.items() if task in system.tasks}
