"""An experiment as its user writes it: base configuration, training seeds, systems under the titles of its tables."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from rayrec.config import STORE, Config, fingerprint, identity
from rayrec.config.section import Section
from rayrec.config.training import StagesConfig
from rayrec.errors import InputError
from rayrec.settings import explain, override, read_tree, validate, with_values
from rayrec.stages import STAGES, StageName, Task
from rayrec.systems import SYSTEMS, SystemName

# One value for all systems, or the tables would compare what cannot be compared.
_COMMON = (
    "name",
    "seed",
    "storage",
    "evaluation.users",
    "evaluation.rows_per_user",
    "evaluation.cutoff",
    "evaluation.bootstrap",
    "evaluation.ks",
)

_SPLIT = "data.split"


class SystemEntry(Section):
    """A row of the tables."""

    system: SystemName
    set: Mapping[str, Any] = {}  # dotted path -> value, on top of the experiment's configuration


class ExperimentConfig(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: str  # configuration file, from the experiment file's folder
    set: Mapping[str, Any] = {}  # dotted path -> value, on top of the base
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)  # of training; the data is the base's
    systems: Mapping[str, SystemEntry] = Field(min_length=1)  # title in the tables -> what it stands for
    reference: str  # the title that the others are compared with


class Experiment(Section):
    """A checked experiment with its base configuration resolved."""

    config: ExperimentConfig
    base: Config  # of the first fold, where there are several
    folds: int | None = None  # run all of so many forward-chained folds; None: the base's one split

    @property
    def identity(self) -> dict[str, Any]:
        """What the experiment's name stands for; systems and seeds may be changed and added."""
        return {"base": self.of_all_folds(identity(self.base))}

    @property
    def each_fold(self) -> tuple[int | None, ...]:
        """The folds, from 1; None for the base's one split."""
        return (None,) if self.folds is None else tuple(range(1, self.folds + 1))

    def of_all_folds(self, base: dict[str, Any]) -> dict[str, Any]:
        """The base as plain data, with all folds in the first one's place."""
        return base if self.folds is None else with_values(base, {_SPLIT: {"folds": self.folds}})

    def seeds(self, title: str) -> tuple[int, ...]:
        """Training seeds of a row of the tables: one where nothing is trained, for all would give the same."""
        seeds = self.config.seeds
        return seeds if is_trained(self.config.systems[title].system) else seeds[:1]

    def configuration(self, title: str, seed: int, fold: int | None = None) -> Config:
        """The configuration of one system, seed and fold; the base's split where no fold is named.

        Raises:
            InputError: the values do not go together.
        """
        tree = with_values(self.base.model_dump(mode="json"), self.config.systems[title].set)
        name = f"{self.config.name}-{self.slugs[title]}-{seed}"  # for trackers
        if fold is not None:
            tree, name = with_values(tree, {f"{_SPLIT}.fold": fold}), f"{name}-fold-{fold}"
        return validate(tree | {"seed": seed, "name": name}, f"systems.{title}.set")

    def stages(self, title: str) -> tuple[StageName, ...]:
        """Stages that a row of the tables needs, in the order of training."""
        config = self.configuration(title, self.config.seeds[0])
        return needed_stages(self.config.systems[title].system, config.stages)

    @cached_property
    def slugs(self) -> dict[str, str]:
        """Title -> the name of its folder; what is nothing without its special characters has a digest behind it."""
        plain = {title: re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.") for title in self.config.systems}
        alone = {slug for slug, count in Counter(plain.values()).items() if count == 1 and slug}
        return {
            title: slug if slug in alone else f"{slug or 'system'}-{fingerprint(title)[:8]}"
            for title, slug in plain.items()
        }


def is_trained(system: SystemName) -> bool:
    """Whether a stage leaves the system's parts, or a member's; else it has no training seed."""
    spec = SYSTEMS[system]
    return spec.after is not None or any(map(is_trained, spec.members))


def needed_stages(system: SystemName, stages: StagesConfig) -> tuple[StageName, ...]:
    """Stages that a system or its members need, in the order of training."""
    spec = SYSTEMS[system]
    needed = {stage for member in spec.members for stage in needed_stages(member, stages)}
    needed |= set() if spec.after is None else set(stages.lineage(spec.after))
    return tuple(stage for stage in STAGES if stage in needed)


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment file; every configuration that comes of it is checked, too.

    Raises:
        InputError: the file, its base or a system cannot be used; one line says why.
    """
    origin = str(path)
    for assignment in overrides:
        if assignment.startswith("systems."):
            raise InputError(f"--set {assignment}: titles may hold dots; change the systems in {origin}")
    tree = override(read_tree(path), overrides, by_path=("set",))
    _check_entries(tree.get("systems"), origin)
    try:
        config = ExperimentConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{origin}: {explain(error, ExperimentConfig)}") from None
    _check_names(config, origin)
    base, folds = _base(path.parent / config.base, config, origin)
    experiment = Experiment(config=config, base=base, folds=folds)
    _check_splits(experiment, origin)
    _check_systems(experiment, origin)
    return experiment


def _base(path: Path, config: ExperimentConfig, origin: str) -> tuple[Config, int | None]:
    """The base with the experiment's values on top, and its folds: ``{folds: 3}`` alone stands for all of them."""
    written = read_tree(path)
    plain = validate(_with_fold(written)[0], str(path)).model_dump(mode="json")
    split = written.get("data", {}).get("split", {})  # without its defaults, which do not go with folds
    tree, has_all = _with_fold(with_values(with_values(plain, {_SPLIT: split}), config.set))
    base = validate(tree | {"name": config.name}, f"{origin}: set")
    return base, base.data.split.folds if has_all else None


def _with_fold(tree: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The tree with the first fold named, where it asks for folds and names none; and whether it does."""
    data = tree.get("data")
    split = data.get("split") if isinstance(data, dict) else None
    if not isinstance(split, dict) or split.get("folds") is None or split.get("fold") is not None:
        return tree, False
    return with_values(tree, {f"{_SPLIT}.fold": 1}), True


def _check_entries(systems: Any, origin: str) -> None:
    """One by one, so that a message names the title whatever characters it has."""
    for title, entry in systems.items() if isinstance(systems, dict) else ():
        try:
            SystemEntry.model_validate(entry)
        except ValidationError as error:
            raise InputError(f"{origin}: systems.{title}: {explain(error, SystemEntry)}") from None


def _check_names(config: ExperimentConfig, origin: str) -> None:
    if config.name == STORE:
        raise InputError(f"{origin}: name: {STORE!r} is the folder of stage results; choose another name")
    if len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"{origin}: seeds: {list(config.seeds)} names a seed twice; leave one out")
    if config.reference not in config.systems:
        near = difflib.get_close_matches(config.reference, config.systems, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]!r}?" if near else f"titles: {', '.join(config.systems)}"
        raise InputError(f"{origin}: reference: no system has the title {config.reference!r}; {mend}")
    for title, entry in config.systems.items():
        if not title.strip():
            raise InputError(f"{origin}: systems: {title!r} is no title; write one that the tables can show")
        for key in entry.set:
            common = next((one for one in _COMMON if one == key or one.startswith(f"{key}.")), None)
            if common is not None:
                raise InputError(
                    f"{origin}: systems.{title}.set.{key}: all systems share {common}; set it for the whole experiment"
                )


def _check_splits(experiment: Experiment, origin: str) -> None:
    """Folds are the whole experiment's: the same for all systems."""
    for title, entry in experiment.config.systems.items() if experiment.folds else ():
        for key in entry.set:
            if key == "data" or f"{key}.".startswith(f"{_SPLIT}."):
                raise InputError(
                    f"{origin}: systems.{title}.set.{key}: all systems share the {experiment.folds} folds; set"
                    f" {_SPLIT} for the whole experiment"
                )


def _check_systems(experiment: Experiment, origin: str) -> None:
    """Every configuration is one of the base's task, and no two titles stand for the same results."""
    known: dict[str, str] = {}
    task = experiment.base.data.task
    if task is Task.NEXT_ITEM and experiment.folds:
        raise InputError(f"{origin}: data.split.folds: of next items one fold is compared at a time; name it")
    for title, entry in experiment.config.systems.items():
        if task not in SYSTEMS[entry.system].tasks:
            offered = ", ".join(name for name, spec in SYSTEMS.items() if task in spec.tasks)
            raise InputError(
                f"{origin}: systems.{title}.system: {entry.system} is not for data.task {task}; choose among {offered}"
            )
        for seed in experiment.seeds(title):
            try:
                config = experiment.configuration(title, seed)
            except InputError as error:
                raise InputError(f"{origin}: {error}") from None
            if config.data.task is not task:
                raise InputError(f"{origin}: systems.{title}.set.data.task: all systems share it; leave it out")
            stage = SYSTEMS[entry.system].after
            if stage is not None and (section := config.lacks(stage)):
                mend = f"set {section} for it, at least to {{}}"
                raise InputError(f"{origin}: systems.{title}: {entry.system} is trained by {stage}; {mend}")
        twin = known.setdefault(f"{entry.system}: {_read_by(config, entry.system)}", title)
        if twin != title:
            raise InputError(
                f"{origin}: systems.{title}: comes to the same {entry.system} as {twin!r}; leave one of them out or set"
                " something that this system reads"
            )


def _read_by(config: Config, system: SystemName) -> dict[str, Any]:
    """The configuration without the stages that the system does not need."""
    content = identity(config)
    content["stages"] = {stage: content["stages"][stage] for stage in needed_stages(system, config.stages)}
    return content
