"""The configuration: frozen pydantic classes. Defaults live here once; YAML says only what differs.

Imports neither torch nor ray. A run's identity is ``fingerprint(config)``.
"""

import functools
import hashlib
import json
import math
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from rayrec.config.cpu import has_bf16
from rayrec.config.data import DataConfig
from rayrec.config.model import ENCODER, BackboneConfig, EncoderConfig, LoraConfig, MapperConfig
from rayrec.config.ranking import LLMSeqPromptConfig, NamesConfig, RankingConfig
from rayrec.config.section import Section
from rayrec.config.trackers import TrackersConfig
from rayrec.config.training import AUTO, ClusterConfig, EngineConfig, FastConfig, StagesConfig
from rayrec.stages import ENCODERS, LOSSES, STAGES, History, Loss, Metric, Part, StageName, Task

STORE = "store"  # folder beside the runs


class EvaluationConfig(Section):
    """The test rows that every system scores alike."""

    users: PositiveInt | None = None  # a fixed, seeded sample of test users; None: all
    rows_per_user: PositiveInt | None = None  # a seeded sample of each user's rows; None: all
    batch: PositiveInt = 16  # rows of a forward pass, of validation too
    encoder_batch: PositiveInt = 512  # the same where the backbone is not asked
    bootstrap: PositiveInt = 1000  # resamples of users, or of sessions, behind each interval
    cutoff: float = Field(0.5, gt=0, lt=1)  # a probability of at least this counts as Yes
    ks: tuple[PositiveInt, ...] = Field((5, 10, 20), min_length=1)  # lists of next items are as long as the largest

    def rows_at_once(self, *, with_backbone: bool) -> int:
        """Rows of a forward pass."""
        return self.batch if with_backbone else self.encoder_batch


class Config(Section):
    name: str = Field("ml100k-smollm2", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    storage: str = "runs"  # a path or URI that every node sees
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    mapper: MapperConfig = MapperConfig()
    backbone: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    engine: EngineConfig = EngineConfig()
    fast: FastConfig = FastConfig()
    cluster: ClusterConfig = ClusterConfig()
    stages: StagesConfig = StagesConfig()
    names: NamesConfig = NamesConfig()
    ranking: RankingConfig = RankingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: TrackersConfig = TrackersConfig()

    @model_validator(mode="before")
    @classmethod
    def _choose_precision(cls, tree: Any) -> Any:
        """``auto`` is written, but a configuration holds what it came to, which decides the results."""
        engine = tree.get("engine") if isinstance(tree, dict) else None
        if not isinstance(engine, dict) or engine.get("precision") != AUTO:
            return tree
        cluster = tree.get("cluster")
        on_gpus = isinstance(cluster, dict) and cluster.get("gpus_per_worker")
        return tree | {"engine": engine | {"precision": "bf16" if on_gpus or has_bf16() else "fp32"}}

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.name == STORE:
            raise ValueError(f"name: {STORE!r} is the folder of stage results that runs share; choose another name")
        self._check_task()
        for name in self.stages.written:
            self._check_loss(name)
            self._check_judge(name)
            for workers in range(self.cluster.least, self.cluster.most + 1):
                micro_batch_rows(self, name, workers)
        for asked, key, mend in (
            (self.engine.precision == "fp16", "engine.precision: fp16", "use bf16 or fp32"),
            (self.engine.offload != "none", f"engine.offload: {self.engine.offload}", "leave it out"),
            (self.backbone.quantised, f"backbone.quantised: {self.backbone.quantised}", "leave it out"),
        ):
            if asked and not self.cluster.gpus_per_worker:
                raise ValueError(f"{key} needs a GPU; {mend}, or set cluster.gpus_per_worker")
        if self.fast.compile and (self.engine.zero_stage == 3 or self.engine.gradient_checkpointing):
            raise ValueError(
                "fast.compile: not with engine.zero_stage 3 or engine.gradient_checkpointing; leave it out"
            )
        if "://" in self.storage.removeprefix("file://") and self.trackers.writes_files:
            raise ValueError(
                f"trackers: {self.trackers.writes_files} writes files into the run's folder, and storage is a URI; use"
                " a storage that is a path, or MLflow or online Weights & Biases"
            )
        return self

    def _check_task(self) -> None:
        if self.data.task is Task.CLICK:
            for path in _OF_NEXT_ITEMS:
                *sections, key = path.split(".")
                section: Section = functools.reduce(getattr, sections, self)
                if getattr(section, key) != type(section).model_fields[key].default:
                    raise ValueError(f"{path}: for data.task next_item only; leave it out")
            return
        if self.ranking.llmseqprompt != LLMSeqPromptConfig() and self.stages.tune_answers is None:
            raise ValueError(
                "ranking.llmseqprompt: nothing is asked of a language model that no stage tunes; write"
                " stages.tune_answers, or leave it out"
            )
        self._check_rerank()
        for asked, key in (
            (self.encoder.history is History.RATED, "encoder.history: rated"),
            (self.encoder.offset, f"encoder.offset: {self.encoder.offset}"),
            (self.mapper.offset and not self._starts_from_its_encoder, f"mapper.offset: {self.mapper.offset}"),
            (self.mapper.features, f"mapper.features: {self.mapper.features}"),
        ):
            if asked:
                raise ValueError(f"{key} learns from what was disliked; for data.task next_item leave it out")
        kind, loss = self.encoder.kind, self.stages.pretrain_encoder.loss
        learned = ENCODERS[kind].losses_of(Task.NEXT_ITEM)
        if not learned:
            able = [each for each, spec in ENCODERS.items() if spec.losses_of(Task.NEXT_ITEM)]
            raise ValueError(
                f"encoder.kind: {kind} knows users by name, and every session is a new one; for data.task next_item use"
                f" {' or '.join(able)}"
            )
        if loss in ENCODERS[kind].losses and loss not in learned:
            raise ValueError(
                f"stages.pretrain_encoder.loss: {loss} is not for data.task next_item, whose rows all have one label;"
                f" write {' or '.join(learned)}"
            )

    def _check_rerank(self) -> None:
        own, places = self.ranking.sasrecllm, max(self.evaluation.ks)
        if own is None:
            return
        if own.candidates < places:
            raise ValueError(
                f"ranking.sasrecllm.candidates: {own.candidates} do not fill lists of {places}, the longest of"
                " evaluation.ks; take as many, or more"
            )
        if Part.ENCODER in self.stages.tune_hybrid.starts_from:
            raise ValueError(
                "stages.tune_hybrid.starts_from.encoder: of next items it starts from the encoder whose candidates it"
                " puts in order; leave it out"
            )

    @property
    def _starts_from_its_encoder(self) -> bool:
        """SASRecLLM of next items: its candidates come in the encoder's order before it has learned another."""
        return self.ranking.sasrecllm is not None and self.mapper.offset == ENCODER

    def lacks(self, name: StageName) -> str | None:
        """The section without which a stage of its task is not there; None: it is."""
        if name not in self.stages.written:
            return f"stages.{name}"
        is_extra = STAGES[name].reads.asks(self.data.task) is not self.data.task
        return "ranking.sasrecllm" if is_extra and self.ranking.sasrecllm is None else None

    @property
    def offered(self) -> tuple[StageName, ...]:
        """The stages that there are for its task, in the order of training."""
        return tuple(name for name, spec in STAGES.items() if self.data.task in spec.tasks and not self.lacks(name))

    @property
    def run_stages(self) -> tuple[StageName, ...]:
        """Those of them that a run trains."""
        return self.stages.of_a_run(self.offered)

    def judged_by(self, name: StageName) -> Metric:
        """What chooses among a stage's checkpoints; more is better."""
        return self.stages[name].judged_by or STAGES[name].judges(self.data.task)[0]

    def _check_judge(self, name: StageName) -> None:
        chosen = self.stages[name].judged_by
        offered = [metric for metric in STAGES[name].judges(self.data.task) if metric.more_is_better]
        if chosen is not None and chosen not in offered:
            raise ValueError(
                f"stages.{name}.judged_by: {chosen} does not choose checkpoints for data.task {self.data.task}; write"
                f" {' or '.join(offered)}"
            )

    def _check_loss(self, name: StageName) -> None:
        kind, loss = self.encoder.kind, self.stages[name].loss
        if Part.ENCODER in STAGES[name].trains and loss not in ENCODERS[kind].losses:
            raise ValueError(
                f"stages.{name}.loss: {loss} needs {LOSSES[loss].needs}, and {kind} does not;"
                f" use {' or '.join(ENCODERS[kind].losses_of(self.data.task))}"
            )
        if name is not StageName.PRETRAIN_ENCODER or loss is Loss.LABEL_BCE:
            return
        if self.encoder.members > 1:
            raise ValueError(
                f"encoder.members: {loss} teaches a single encoder; use stages.{name}.loss label_bce, or leave it out"
            )
        if self.encoder.offset:
            raise ValueError(
                f"encoder.offset: {loss} does not learn from scores, so the offset would stay alone; use"
                f" stages.{name}.loss label_bce, or leave it out"
            )


_OF_NEXT_ITEMS = ("encoder.initial", "names", "ranking", "stages.tune_answers", "evaluation.ks")  # only they read it


def micro_batch_rows(config: Config, name: StageName, workers: int) -> int:
    """Rows per forward pass of one of ``workers``: the largest equal parts of its share that ``micro_batch`` allows.

    Raises:
        ValueError: the global batch does not divide evenly.
    """
    stage, cluster = config.stages[name], config.cluster
    share, rest = divmod(stage.batch, workers)
    if rest or not share:
        multiple = math.lcm(*range(cluster.least, cluster.most + 1))
        raise ValueError(
            f"stages.{name}.batch {stage.batch} is not divisible by {workers} workers; use a multiple of {multiple}"
        )
    most = min(stage.micro_batch or share, share)
    return max(rows for rows in range(1, most + 1) if share % rows == 0)


# What may change between two calls without changing any result: how to run is not what to run.
_NOT_IDENTITY: Any = {"name": True, "storage": True, "cluster": True, "trackers": True, "backbone": {"plan_from": True}}
# Settings that are younger than runs: at their defaults they are left out, so that what was bound before stays bound.
_YOUNGER = (
    "encoder.history",
    "encoder.mask",
    "encoder.offset",
    "encoder.trust",
    "encoder.centred",
    "encoder.members",
    "mapper.offset",
    "mapper.features",
    "fast.kept_prefixes_gb",
    "stages.pretrain_encoder.negatives",
    "stages.pretrain_encoder.calibration",
    *(f"stages.{stage}.judged_by" for stage in Config().stages.written),
    "ranking.embedding_ensemble",
    "ranking.llmseqsim_popularity",
    "ranking.llmseqsim_sequential",
    "ranking.llmseqprompt",
    "ranking.sasrecllm",
    *_OF_NEXT_ITEMS,  # at last: a section is at its default where the younger ones in it are gone
)


def identity(config: Config) -> dict[str, Any]:
    """All that determines the results, as plain data."""
    content = config.model_dump(mode="json", exclude=_NOT_IDENTITY)
    usual = Config().model_dump(mode="json")
    for path in _YOUNGER:
        *sections, key = path.split(".")
        held, default = (functools.reduce(dict.__getitem__, sections, tree) for tree in (content, usual))
        if held[key] == default[key]:
            del held[key], default[key]
    return content


def fingerprint(content: Any) -> str:
    """sha256 (hex, 64 characters) of plain data in canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """``dotted.path: old -> new`` for every leaf that differs between two trees of plain data."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return lines
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]
