"""How stages train: engine, short cuts, workers, steps."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rayrec.config.section import Section
from rayrec.stages import LOSSES, STAGES, Loss, Metric, Part, StageName, Start, inherited

Precision = Literal["fp32", "bf16", "fp16"]
AUTO = "auto"  # written for a precision: bf16, but fp32 where workers have no GPU and this CPU no instructions for bf16
_OF_LOSSES = sorted({key for spec in LOSSES.values() for key in spec.reads})  # settings that not every loss reads


class EngineConfig(Section):
    """How DeepSpeed runs the stages that hold the backbone; the encoder alone always trains in fp32."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Precision = "bf16"
    gradient_clipping: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False
    offload: Literal["none", "optimizer", "all"] = "none"  # to the CPU's memory; "all": the weights too, with ZeRO-3

    @model_validator(mode="after")
    def _offloads_what_is_sharded(self) -> "EngineConfig":
        if self.offload == "optimizer" and not self.zero_stage:
            raise ValueError("offload: optimizer needs ZeRO; set zero_stage to 1, 2 or 3")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(f"offload: all needs ZeRO-3, found zero_stage {self.zero_stage}; use offload: optimizer")
        return self


class FastConfig(Section):
    """Exact short cuts of the stages that hold the backbone; turn them off to compare with the plain path."""

    split_prompts: bool = True  # rows of equal history go through it once; without gradient where none is asked
    shared_rows: PositiveInt = 4  # rows of one history that training draws together; with 1, each on its own
    merge_lora: bool = True  # a frozen LoRA becomes part of the weights
    # On a CPU: of a worker's memory, for what frozen layers have read of validation rows; 0: read at each evaluation.
    kept_prefixes_gb: float = Field(0.25, ge=0)
    plain_attention: bool = True  # on a CPU, where learning or bf16: as products, not by torch's fused kernel
    compile: bool = False  # torch.compile of the backbone: minutes in every process before its first steps


class WorkerRange(Section):
    """As many workers as there is room for; a group of another size goes on from the last checkpoint."""

    min: PositiveInt = 1
    max: PositiveInt
    look_every: PositiveFloat = 60.0  # seconds between two looks for more room

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class ClusterConfig(Section):
    workers: Annotated[
        Annotated[PositiveInt, Tag("[number]")] | Annotated[WorkerRange, Tag("[range]")],
        Discriminator(lambda value: "[range]" if isinstance(value, Mapping | WorkerRange) else "[number]"),
    ] = 2
    gpus_per_worker: int = Field(0, ge=0)
    cpus_per_worker: PositiveInt = 1
    card_gb: PositiveFloat | None = None  # memory of a worker's GPU: --plan says what fits
    max_failures: int = Field(3, ge=-1)  # worker-group restarts before a stage gives up; -1: no limit

    @property
    def least(self) -> int:
        """Workers of the smallest group."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def most(self) -> int:
        """Workers of the largest group."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers


class StageConfig(Section):
    """One stage's training. ``epochs`` x ``steps_per_epoch`` optimizer steps of ``batch`` rows each."""

    epochs: PositiveInt
    steps_per_epoch: PositiveInt | None = None  # None: the whole training set
    batch: PositiveInt = 16  # rows per optimizer step, over all workers
    micro_batch: PositiveInt | None = None  # rows per forward pass of one worker, at most; None: its whole share
    lr: float = Field(1e-3, gt=0)
    part_lr: Mapping[Part, PositiveFloat] = {}  # where a part needs another rate than `lr`
    weight_decay: float = Field(1e-3, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the stage's steps
    judged_by: Metric | None = None  # on validation rows, more is better; None: AUC, of lists NDCG
    patience: PositiveInt = 20  # evaluations that are no better before the stage stops
    checkpoint_every: PositiveInt = 8  # epochs; the best so far travels inside each checkpoint
    valid_users: PositiveInt | None = None  # validate on a fixed, seeded sample; None: all of them
    valid_rows_per_user: PositiveInt | None = None
    loss: Loss = Loss.LABEL_BCE
    # Parts to train, e.g. [mapper], instead of those of the stage's table; tune_hybrid may train lora as well.
    trains: tuple[Part, ...] | None = Field(None, min_length=1)
    # Part -> the folder of a saved one to start from instead of this run's own; or `fresh`, newly drawn, or `none`.
    starts_from: Mapping[Part, str] = {}
    resume_from: str | None = None  # folder of a checkpoint of this stage, trained with another engine, to go on from

    @property
    def of_loss(self) -> dict[str, Any]:
        """The settings that the loss reads, by name."""
        return {key: getattr(self, key) for key in sorted(LOSSES[self.loss].reads)}


class PretrainEncoderConfig(StageConfig):
    epochs: PositiveInt = 200
    batch: PositiveInt = 1024
    patience: PositiveInt = 5
    checkpoint_every: PositiveInt = 1
    negatives: PositiveInt = 256  # sampled_softmax, gbce: other items that a position is told from
    calibration: float = Field(0.75, ge=0, le=1)  # gbce: 0 is plain BCE, 1 scores as a loss over all items would

    @model_validator(mode="after")
    def _fits_its_loss(self) -> "PretrainEncoderConfig":
        for key in _OF_LOSSES:
            default = type(self).model_fields[key].default
            if key not in LOSSES[self.loss].reads and getattr(self, key) != default:
                raise ValueError(f"{self.loss} does not read {key}; leave it out, or at its default, {default}")
        return self


class TuneLoraConfig(StageConfig):
    epochs: PositiveInt = 200
    steps_per_epoch: PositiveInt | None = 50
    micro_batch: PositiveInt | None = 4


class TuneHybridConfig(TuneLoraConfig):
    part_lr: Mapping[Part, PositiveFloat] = {Part.ENCODER: 1e-4}  # at the mapper's rate the encoder forgets


class TuneAnswersConfig(TuneLoraConfig):
    loss: Loss = Loss.ANSWER_WORDS


class StagesConfig(Section):
    pretrain_encoder: PretrainEncoderConfig = PretrainEncoderConfig()
    tune_lora: TuneLoraConfig = TuneLoraConfig()
    tune_hybrid: TuneHybridConfig = TuneHybridConfig()
    tune_answers: TuneAnswersConfig | None = None  # None: there is no LLMSeqPrompt

    @model_validator(mode="after")
    def _follow_the_table(self) -> "StagesConfig":
        for name in self.written:
            spec, stage, trained = STAGES[name], self[name], self.trained(name)
            if stage.loss not in spec.losses:
                raise ValueError(f"{name}.loss: {stage.loss} is not offered; choose {' or '.join(spec.losses)}")
            strange = (trained - spec.trains - spec.optional) | (stage.part_lr.keys() - spec.trains - trained)
            if strange:
                raise ValueError(f"{name} does not train {min(strange)}; it trains {', '.join(sorted(spec.trains))}")
            for part, start in stage.starts_from.items():
                self._check_start(name, part, start)
            for part in sorted(self.parts(name) - trained - self.parents(name).keys() - self.folders(name).keys()):
                other = "a folder or none" if part in spec.optional else "a folder"
                raise ValueError(
                    f"{name}.trains: {part} would be drawn and never learn; add it, or write {other} in"
                    f" {name}.starts_from.{part}"
                )
        return self

    def _check_start(self, name: StageName, part: Part, start: str) -> None:
        spec, where = STAGES[name], f"{name}.starts_from"
        held = spec.trains | frozenset(inherited(name))
        if part not in held:
            raise ValueError(f"{where}: {name} has no {part}; it has {', '.join(sorted(held))}")
        if start == Start.FRESH and part not in inherited(name):
            raise ValueError(f"{where}.{part}: {name} inherits no {part}, it is fresh anyway; leave it out")
        if start == Start.NONE and part not in spec.optional:
            raise ValueError(f"{where}.{part}: none, but {name} cannot go without {part}; write something else")
        if start == Start.NONE and part in self.trained(name):
            raise ValueError(f"{where}.{part}: none, but {name}.trains names {part}; write fresh, or take it out there")

    def __getitem__(self, name: StageName) -> StageConfig:
        stage: StageConfig | None = getattr(self, name.value)
        assert stage is not None
        return stage

    @property
    def written(self) -> tuple[StageName, ...]:
        """The stages that there are, in the order of training."""
        return tuple(name for name in STAGES if getattr(self, name.value) is not None)

    def trained(self, name: StageName) -> frozenset[Part]:
        """Parts that a stage trains."""
        return frozenset(self[name].trains or STAGES[name].trains)

    def parts(self, name: StageName) -> frozenset[Part]:
        """Every part that a stage's model holds, trained or frozen."""
        absent = {part for part, start in self[name].starts_from.items() if start == Start.NONE}
        return (STAGES[name].trains | inherited(name).keys()) - absent

    def folders(self, name: StageName) -> dict[Part, str]:
        """Part -> folder, for the parts that a stage starts from by name."""
        return {part: start for part, start in self[name].starts_from.items() if not _is_word(start)}

    def parents(self, name: StageName) -> dict[Part, StageName]:
        """Part -> the stage that it is inherited from; what ``starts_from`` settles is not among them."""
        return {part: source for part, source in inherited(name).items() if part not in self[name].starts_from}

    def lineage(self, name: StageName) -> tuple[StageName, ...]:
        """The ancestors that a stage needs and itself, in the order of training."""
        needed = {name}.union(*(self.lineage(parent) for parent in self.parents(name).values()))
        return tuple(stage for stage in STAGES if stage in needed)

    def of_a_run(self, offered: Sequence[StageName]) -> tuple[StageName, ...]:
        """Those of the stages ``offered`` that a run trains: without those whose parts `fresh` or `none` replace.

        A folder in the place of a part leaves its stage in: the run's tables still have a row for it.
        """
        handed_on = {source for name in offered for source in inherited(name).values()}
        wanted = {
            source
            for name in offered
            for part, source in inherited(name).items()
            if not _is_word(self[name].starts_from.get(part))
        }
        return tuple(name for name in offered if name not in handed_on or name in wanted)


def _is_word(start: str | None) -> bool:
    return start in set(Start)
