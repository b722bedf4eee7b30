"""The method as a table: tasks; which parts a stage trains, what it reads and where it starts; encoders.

Section numbers refer to the SASRecLLM paper: dual-stage training (3.2.1), hierarchical freezing (3.2.2),
plug-and-play tuning (3.2.3). What is compared of it: `rayrec.systems`.
"""

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Name(str, Enum):
    """A string that is one of few; prints as itself (``enum.StrEnum`` needs Python 3.11)."""

    def __str__(self) -> str:
        return str(self.value)


class Task(Name):
    """What is asked of a row."""

    CLICK = "click"  # would this user like this item
    NEXT_ITEM = "next_item"  # which item of the whole catalogue follows


class Metric(Name):
    """What a stage is judged by on its validation rows."""

    AUC = "valid_auc"
    UAUC = "valid_uauc"
    AUC_AND_UAUC = "valid_auc_uauc"  # their mean: who orders users well may order their items badly
    LOG_LOSS = "valid_log_loss"
    NDCG = "valid_ndcg"
    HR = "valid_hr"
    ANSWERS = "valid_answers"  # mean log-probability of a token of the answers

    @property
    def shown(self) -> str:
        return _METRIC_TITLES[self]

    @property
    def more_is_better(self) -> bool:
        return self is not Metric.LOG_LOSS


VALID_K = 20  # places of a list in validation

_METRIC_TITLES = MappingProxyType(
    {
        Metric.AUC: "AUC",
        Metric.UAUC: "UAUC",
        Metric.AUC_AND_UAUC: "mean of AUC and UAUC",
        Metric.LOG_LOSS: "log loss",
        Metric.NDCG: f"NDCG@{VALID_K}",
        Metric.HR: f"HR@{VALID_K}",
        Metric.ANSWERS: "log p of answers",
    }
)

# The first one chooses checkpoints and ends a stage early, unless a configuration says otherwise.
JUDGED_BY = MappingProxyType(
    {
        Task.CLICK: (Metric.AUC, Metric.UAUC, Metric.AUC_AND_UAUC, Metric.LOG_LOSS),
        Task.NEXT_ITEM: (Metric.NDCG, Metric.HR),
    }
)


class Part(Name):
    """A separately trained, saved and loaded piece of the model."""

    ENCODER = "encoder"
    MAPPER = "mapper"
    LORA = "lora"


class Stream(Name):
    """What a batch holds."""

    INTERACTIONS = "interactions"  # liked history -> target item
    TEXT_PROMPTS = "text_prompts"  # titles only
    HYBRID_PROMPTS = "hybrid_prompts"  # titles and soft tokens
    ANSWER_PROMPTS = "answer_prompts"  # names of a session's items, then the names that answer

    @property
    def uses_backbone(self) -> bool:
        return self is not Stream.INTERACTIONS

    @property
    def answers(self) -> bool:
        """In words, instead of Yes or No."""
        return self is Stream.ANSWER_PROMPTS

    def asks(self, task: Task) -> Task:
        """What is asked of a row: a prompt for Yes or No asks for likes whatever the task."""
        return Task.CLICK if self in {Stream.TEXT_PROMPTS, Stream.HYBRID_PROMPTS} else task


class Loss(Name):
    """The training objective of a stage."""

    LABEL_BCE = "label_bce"  # BCE of the row's score against its label
    NEXT_ITEM = "next_item"  # SASRec's own: one sampled negative at every position
    SOFTMAX = "softmax"  # the same positions against the whole catalogue
    SAMPLED_SOFTMAX = "sampled_softmax"  # the same against a sample of it
    GBCE = "gbce"  # gSASRec's: BCE against such a sample, calibrated
    CLOZE = "cloze"  # BERT4Rec's: masked items of a sequence against the whole catalogue
    ANSWER_WORDS = "answer_words"  # a causal language model's, of an answer's tokens alone


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """What a loss asks for."""

    needs: str = ""  # who can learn by it; nothing: any encoder
    reads: frozenset[str] = frozenset()  # settings of its own, of the stage


_FORWARDS = "an encoder that reads a sequence forwards"

LOSSES = MappingProxyType(
    {
        Loss.LABEL_BCE: LossSpec(),
        Loss.NEXT_ITEM: LossSpec(needs=_FORWARDS),
        Loss.SOFTMAX: LossSpec(needs=_FORWARDS),
        Loss.SAMPLED_SOFTMAX: LossSpec(needs=_FORWARDS, reads=frozenset({"negatives"})),
        Loss.GBCE: LossSpec(needs=_FORWARDS, reads=frozenset({"negatives", "calibration"})),
        Loss.CLOZE: LossSpec(needs="an encoder that reads a sequence both ways"),
        Loss.ANSWER_WORDS: LossSpec(needs="a language model that answers in words"),
    }
)


class EncoderKind(Name):
    SASREC = "sasrec"
    MF = "mf"
    NEUMF = "neumf"
    GRU = "gru"
    BERT4REC = "bert4rec"


class Start(Name):
    """What a part may start from instead of what an earlier stage or a folder holds."""

    FRESH = "fresh"  # weights that the stage draws itself
    NONE = "none"  # the stage goes without the part


class History(Name):
    """What an encoder that reads a sequence reads."""

    LIKED = "liked"
    RATED = "rated"  # all rated items, each with its label


class Form(Name):
    """What LLMSeqPrompt asks a language model for: https://arxiv.org/abs/2402.01339, section 4."""

    GENITEM = "genitem"  # one item, asked for again and again
    GENLIST = "genlist"  # a list of items
    CLASS = "class"  # a list of clusters, each called by its most popular item
    RANK = "rank"  # an order of items that the prompt offers


class StageName(Name):
    PRETRAIN_ENCODER = "pretrain_encoder"
    TUNE_LORA = "tune_lora"
    TUNE_HYBRID = "tune_hybrid"
    TUNE_ANSWERS = "tune_answers"  # only where a configuration has a section of this name


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage; every part that is not in ``trains`` is frozen and in eval mode."""

    trains: frozenset[Part]
    reads: Stream
    starts_from: tuple[StageName, ...] = ()
    optional: frozenset[Part] = frozenset()  # parts that a configuration may train here too, or leave out
    losses: tuple[Loss, ...] = (Loss.LABEL_BCE,)
    tasks: frozenset[Task] = frozenset({Task.CLICK})
    judged_by: tuple[Metric, ...] = ()  # none: by what is asked of its rows

    def judges(self, task: Task) -> tuple[Metric, ...]:
        """What its validation rows tell; the first one chooses."""
        return self.judged_by or JUDGED_BY[self.reads.asks(task)]


_NEXT_ITEM = frozenset({Task.NEXT_ITEM})

STAGES = MappingProxyType(
    {
        StageName.PRETRAIN_ENCODER: StageSpec(
            trains=frozenset({Part.ENCODER}),
            reads=Stream.INTERACTIONS,
            losses=tuple(loss for loss in Loss if loss is not Loss.ANSWER_WORDS),
            tasks=frozenset(Task),
        ),
        # Of next items only where a configuration wants SASRecLLM: `Config.offered`.
        StageName.TUNE_LORA: StageSpec(trains=frozenset({Part.LORA}), reads=Stream.TEXT_PROMPTS, tasks=frozenset(Task)),
        StageName.TUNE_HYBRID: StageSpec(
            trains=frozenset({Part.ENCODER, Part.MAPPER}),
            reads=Stream.HYBRID_PROMPTS,
            starts_from=(StageName.PRETRAIN_ENCODER, StageName.TUNE_LORA),
            optional=frozenset({Part.LORA}),
            tasks=frozenset(Task),
        ),
        # Its answers would have to be generated, token after token, for a list to be judged: the more likely the right
        # answers, the better, costs one pass.
        StageName.TUNE_ANSWERS: StageSpec(
            trains=frozenset({Part.LORA}),
            reads=Stream.ANSWER_PROMPTS,
            losses=(Loss.ANSWER_WORDS,),
            tasks=_NEXT_ITEM,
            judged_by=(Metric.ANSWERS,),
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A collaborative encoder; every kind has a width and takes rows in the same order."""

    title: str
    reads: frozenset[str]  # settings of its own
    losses: tuple[Loss, ...] = (Loss.LABEL_BCE,)
    title_of_next_items: str | None = None  # where it is known by another

    def losses_of(self, task: Task) -> tuple[Loss, ...]:
        """What it can learn from; every label of a next item is 1 and teaches nothing."""
        return tuple(loss for loss in self.losses if task is Task.CLICK or loss is not Loss.LABEL_BCE)


_OF_FORWARDS = tuple(loss for loss, spec in LOSSES.items() if spec.needs in {"", _FORWARDS})

ENCODERS = MappingProxyType(
    {
        EncoderKind.SASREC: EncoderSpec(
            title="SASRec", reads=frozenset({"blocks", "heads", "dropout", "history", "centred"}), losses=_OF_FORWARDS
        ),
        EncoderKind.MF: EncoderSpec(title="MF", reads=frozenset()),
        EncoderKind.NEUMF: EncoderSpec(title="NeuMF", reads=frozenset({"dropout"})),
        EncoderKind.GRU: EncoderSpec(
            title="GRU",
            reads=frozenset({"dropout", "history", "centred"}),
            losses=_OF_FORWARDS,
            title_of_next_items="GRU4Rec",
        ),
        EncoderKind.BERT4REC: EncoderSpec(
            title="BERT4Rec",
            reads=frozenset({"blocks", "heads", "dropout", "mask", "centred"}),
            losses=(Loss.LABEL_BCE, Loss.CLOZE),
        ),
    }
)


def inherited(stage: StageName) -> dict[Part, StageName]:
    """Part -> the latest ancestor that trained it: what ``stage`` starts from where a configuration says nothing else.

    Raises:
        ValueError: two unrelated ancestors train the same part, so that its origin is ambiguous.
    """
    origin: dict[Part, StageName] = {}
    for parent in STAGES[stage].starts_from:
        for part, source in (inherited(parent) | dict.fromkeys(STAGES[parent].trains, parent)).items():
            known = origin.setdefault(part, source)
            if known != source:
                raise ValueError(f"{stage} inherits {part} from both {known} and {source}")
    return origin
