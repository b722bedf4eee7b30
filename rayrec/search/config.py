"""A search as its user writes it: base configuration, space, objective, algorithm, scheduler, budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from rayrec.config import STORE, Config, fingerprint, identity
from rayrec.config.section import Section
from rayrec.errors import InputError
from rayrec.search.space import Distribution, check_space, data_variants, grid
from rayrec.settings import explain, load, override, read_tree, validate, with_values
from rayrec.stages import STAGES, Metric, StageName


class Objective(Section):
    """The best value that a stage's evaluations reach."""

    stage: StageName
    metric: Metric = Metric.AUC

    @property
    def mode(self) -> Literal["max", "min"]:
        return "max" if self.metric.more_is_better else "min"


class NoScheduler(Section):
    """Every trial trains to its end."""

    kind: Literal["none"] = "none"


class Asha(Section):
    """Asynchronous successive halving, https://arxiv.org/abs/1810.05934; times are evaluations (epochs)."""

    kind: Literal["asha"]
    grace: PositiveInt = 1
    factor: float = Field(3.0, gt=1)


class HyperBand(Section):
    """https://arxiv.org/abs/1603.06560: trials of a bracket wait for each other; the first bracket stops none."""

    kind: Literal["hyperband"]
    factor: float = Field(3.0, gt=1)


class MedianStopping(Section):
    """Vizier's rule: stop what stays below the median of the running averages."""

    kind: Literal["median"]
    grace: PositiveInt = 1
    at_least: PositiveInt = 3  # trials to compare with


class PopulationBased(Section):
    """https://arxiv.org/abs/1711.09846: the worst trials go on from the best ones' states with changed values.

    All wait for the last at every look, so that the same search takes the same decisions.

    What comes of it is a schedule of values, not one configuration: ``best.yaml`` holds the last ones.
    """

    kind: Literal["pbt"]
    every: PositiveInt = 2  # evaluations between two looks
    quantile: float = Field(0.25, gt=0, le=0.5)  # the share of trials that is replaced


# Tune compares the trials that it knows of, so these must know all of them from the start.
DRAWN_AT_ONCE = (HyperBand, PopulationBased)


class Budget(Section):
    """When the search ends: all trials done, or this many hours after the command began."""

    trials: PositiveInt = 12
    hours: PositiveFloat | None = None


Scheduler = Annotated[NoScheduler | Asha | HyperBand | MedianStopping | PopulationBased, Field(discriminator="kind")]


class SearchConfig(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: str  # configuration file, from the search file's folder
    set: Mapping[str, Any] = {}  # dotted path -> value, on top of the base
    objective: Objective
    space: Mapping[str, Distribution] = Field(min_length=1)
    algorithm: Literal["random", "grid", "tpe"] = "tpe"
    scheduler: Scheduler = Asha(kind="asha")
    budget: Budget = Budget()
    concurrent: PositiveInt | None = None  # trials at once; None: as many as the cluster has room for
    seed: int = Field(0, ge=0)


class Search(Section):
    """A checked search with its base configuration resolved."""

    config: SearchConfig
    base: Config

    @property
    def stage(self) -> StageName:
        return self.config.objective.stage

    @property
    def identity(self) -> dict[str, Any]:
        """What the search's name stands for; a budget may grow."""
        what = self.config.model_dump(mode="json", exclude={"name", "base", "set", "budget", "concurrent"})
        return {"search": what, "base": identity(self.base)}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def trials(self) -> int:
        """Trials to run: a grid has as many as it has points."""
        return len(grid(self.config.space)) if self.config.algorithm == "grid" else self.config.budget.trials

    def trial_config(self, values: Mapping[str, Any]) -> Config:
        """The configuration of one trial.

        Raises:
            InputError: the values do not go together.
        """
        tree = with_values(self.base.model_dump(mode="json"), values)
        return validate(tree, ", ".join(f"{path}={value}" for path, value in values.items()))


def load_search(path: Path, overrides: Sequence[str] = ()) -> Search:
    """Read and check a search file.

    Raises:
        InputError: the file, its base, its space or its budget cannot be used; one line says why.
    """
    origin = str(path)
    tree = override(read_tree(path), overrides, by_path=("set", "space"))
    try:
        config = SearchConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{origin}: {explain(error, SearchConfig)}") from None
    if config.name == STORE:
        raise InputError(f"{origin}: name: {STORE!r} is the folder of stage results; choose another name")
    plain = load(path.parent / config.base)
    base = validate(with_values(plain.model_dump(mode="json"), config.set), f"{origin}: set")
    stage = config.objective.stage
    _check_objective(config, base, origin)
    check_space(config.space, base, stage, origin)
    data_variants(config.space, origin)
    _check_budget(config, base, origin)
    return Search(config=config, base=base)


def _check_objective(config: SearchConfig, base: Config, origin: str) -> None:
    objective, task = config.objective, base.data.task
    if "data.task" in config.space:
        raise InputError(f"{origin}: space.data.task: trials of different tasks cannot be compared; leave it out")
    if task not in STAGES[objective.stage].tasks:
        offered = " or ".join(base.offered)
        raise InputError(f"{origin}: objective.stage: {objective.stage} is no stage of data.task {task}; use {offered}")
    if section := base.lacks(objective.stage):
        raise InputError(f"{origin}: objective.stage: the base has no {section}; write it there")
    judges = STAGES[objective.stage].judges(task)
    if objective.metric not in judges:
        raise InputError(
            f"{origin}: objective.metric: {objective.stage} of data.task {task} is not judged by {objective.metric};"
            f" write {' or '.join(judges)}"
        )


def _check_budget(config: SearchConfig, base: Config, origin: str) -> None:
    if config.algorithm == "grid":
        points = len(grid(config.space))
        if "trials" in config.budget.model_fields_set and config.budget.trials < points:
            raise InputError(
                f"{origin}: budget.trials: {config.budget.trials}, but the grid has {points} points;"
                " leave it out, raise it or make the space smaller"
            )
    evaluations = longest(config, base)
    if isinstance(config.scheduler, PopulationBased):
        _check_population(config, origin)
    _check_drawn_at_once(config, origin)
    grace = getattr(config.scheduler, "grace", 1)
    if grace > evaluations:
        raise InputError(
            f"{origin}: scheduler.grace: {grace} evaluations, but {config.objective.stage} has only {evaluations}"
        )


def _check_population(config: SearchConfig, origin: str) -> None:
    """What changes while a stage trains must leave its shapes, its data and its steps as they are."""
    stage = f"stages.{config.objective.stage}"
    free = (f"{stage}.lr", f"{stage}.weight_decay", "encoder.dropout", "lora.dropout")
    for path in config.space:
        if path not in free and not path.startswith(f"{stage}.part_lr."):
            raise InputError(
                f"{origin}: space.{path}: pbt changes values while a stage trains, and this one would change more than"
                f" that; it may change {', '.join(free)}"
            )
    if config.algorithm != "random":
        raise InputError(f"{origin}: algorithm: pbt starts from random values and changes them itself; use random")


def _check_drawn_at_once(config: SearchConfig, origin: str) -> None:
    if config.algorithm == "tpe" and isinstance(config.scheduler, DRAWN_AT_ONCE):
        raise InputError(
            f"{origin}: algorithm: tpe learns from ended trials, and {config.scheduler.kind} must know all trials from"
            " the start; use random or grid, or scheduler: {kind: asha}"
        )


def longest(config: SearchConfig, base: Config) -> int:
    """Evaluations of a trial that runs to its end: the most that the space allows."""
    stage = config.objective.stage
    path = f"stages.{stage}.epochs"
    drawn = config.space.get(path)
    return max(drawn.corners) if drawn is not None else base.stages[stage].epochs


def as_yaml(config: Config) -> str:
    """A configuration file: only what differs from the defaults."""
    tree = config.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
