"""A pair: one system under one training seed, in one fold if there are several; addressed by all that determines its
predictions.

Pairs share the store of their storage, so a stage that several need is trained once; and what a pair has scored is
found again whatever the experiment is called in its file by then: title, order and other pairs do not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rayrec import storage
from rayrec.config import Config, fingerprint, identity
from rayrec.data.beside import Beside, read_beside
from rayrec.evaluation.predictions import choice_path, predictions_path
from rayrec.experiment.settings import Experiment, needed_stages
from rayrec.names.tables import NameTable, tables_read
from rayrec.preparation import answer_settings
from rayrec.run import Run
from rayrec.stages import STAGES, StageName, Task
from rayrec.store import Prepared, code_version, stage_jobs, store_folder
from rayrec.systems import SYSTEMS, SystemName
from rayrec.training.job import StageJob

_DIGITS = 16  # of a fingerprint, in the name of a folder
_OF_TABLES = ("bootstrap", "cutoff")  # settings of the evaluation that change no prediction


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One system and seed, its data prepared."""

    title: str
    system: SystemName
    seed: int
    fold: int | None  # of an experiment with folds
    run: Run  # its folder is the pair's own; its data is shared
    content: Mapping[str, Any]  # all that determines the predictions
    jobs: Mapping[StageName, StageJob]  # the stages that the system or its members need, in the order of training
    members: tuple["Pair", ...] = ()  # whose scores it pools

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.content)

    @property
    def label(self) -> str:
        """Title, and the seed and the fold where one counts."""
        seed, fold = f", seed {self.seed}", f", fold {self.fold}"
        return f"{self.title}{seed if self.jobs else ''}{'' if self.fold is None else fold}"

    @property
    def is_finished(self) -> bool:
        return storage.exists(self.predictions)

    @property
    def predictions(self) -> str:
        """Where they lie (PREDICTIONS_SCHEMA)."""
        return predictions_path(self.run, self.system)

    @property
    def choice(self) -> str:
        """Where an ensemble's weights or a hybrid's setting lie."""
        return choice_path(self.run, self.system)


def experiment_folder(experiment: Experiment) -> str:
    """``{storage}/{name}``."""
    return storage.join(storage.absolute(experiment.base.storage), experiment.config.name)


def data_folder(experiment: Experiment, config: Config) -> str:
    """Prepared data in the store, shared by all pairs of equal data and tokenizer.

    The base's seed is the data's: generated rows stay the same whatever seed trains on them, and so pairs compare.
    """
    what = {"data": config.data.model_dump(mode="json"), "seed": experiment.base.seed}
    what |= {"backbone": list(config.backbone.sources)}  # its tokenizer cuts the prompts
    what |= answer_settings(config)
    return storage.join(store_folder(config), "data", fingerprint(what)[:_DIGITS])


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Prepared data, and who reads it."""

    data: Prepared
    fold: int | None
    titles: list[str]
    configs: list[Config]  # one a title
    beside: frozenset[Beside]  # what they read besides the rows


def variants(experiment: Experiment) -> list[Variant]:
    """All the prepared data that the experiment asks for, each once, fold by fold."""
    return [variant for fold in experiment.each_fold for variant in _variants(experiment, fold)]


def _variants(experiment: Experiment, fold: int | None) -> list[Variant]:
    readers: dict[str, list[str]] = {}
    systems = experiment.config.systems
    configs = {title: experiment.configuration(title, experiment.seeds(title)[0], fold) for title in systems}
    for title, config in configs.items():
        readers.setdefault(data_folder(experiment, config), []).append(title)
    return [
        Variant(
            data=Prepared(folder),
            fold=fold,
            titles=titles,
            configs=[configs[title] for title in titles],
            beside=frozenset(one for title in titles for one in _beside(systems[title].system, configs[title])),
        )
        for folder, titles in readers.items()
    ]


def _beside(system: SystemName, config: Config) -> frozenset[Beside]:
    """What the system or a stage that it needs reads besides the rows."""
    streams = [SYSTEMS[system].reads, *(STAGES[stage].reads for stage in needed_stages(system, config.stages))]
    return read_beside(config, *(stream for stream in streams if stream is not None))


def name_tables(experiment: Experiment) -> list[tuple[Config, Prepared, NameTable]]:
    """Every table of names that some pair reads, with its configuration and data, whose rows must be prepared."""
    found: list[tuple[Config, Prepared, NameTable]] = []
    for title, entry in experiment.config.systems.items():
        for fold in experiment.each_fold:
            for seed in experiment.seeds(title):
                config = experiment.configuration(title, seed, fold)
                data = Prepared(data_folder(experiment, config))
                found += [(config, data, table) for table in tables_read(config, [entry.system])]
    return found


def all_pairs(experiment: Experiment) -> list[Pair]:
    """Every pair, seed by seed within a fold within a title; the data must be prepared.

    Raises:
        InputError: a part that a configuration names is not there.
    """
    return [
        _pair(experiment, title, seed, fold)
        for title in experiment.config.systems
        for fold in experiment.each_fold
        for seed in experiment.seeds(title)
    ]


def _pair(experiment: Experiment, title: str, seed: int, fold: int | None, member: SystemName | None = None) -> Pair:
    """A row's pair, or that of a member of its system."""
    system = member or experiment.config.systems[title].system
    config = experiment.configuration(title, seed, fold)
    members = tuple(_pair(experiment, title, seed, fold, name) for name in SYSTEMS[system].members)
    data = data_folder(experiment, config)
    jobs = stage_jobs(config, Prepared(data), store_folder(config))
    needed = {stage: jobs[stage] for stage in needed_stages(system, config.stages)}
    content = _content(system, config, Prepared(data), list(needed.values()))
    if members:
        content["members"] = [one.fingerprint for one in members]
    place = storage.join(experiment_folder(experiment), "pairs", fingerprint(content)[:_DIGITS])
    run = Run(config, place=place, prepared=data)
    return Pair(
        title=title, system=system, seed=seed, fold=fold, run=run, content=content, jobs=needed, members=members
    )


def _content(system: SystemName, config: Config, data: Prepared, needed: list[StageJob]) -> dict[str, Any]:
    """All that determines a pair's predictions. The last stage's fingerprint stands for the seed and its ancestors.

    Without a stage, floors of clicks are the same for every seed; neighbours and vectors of next items are not.
    """
    content = identity(config)
    del content["stages"]
    if needed or config.data.task is Task.CLICK:
        del content["seed"]
    content["evaluation"] = {key: value for key, value in content["evaluation"].items() if key not in _OF_TABLES}
    return content | {
        "system": system.value,
        "trained": needed[-1].fingerprint if needed else None,
        "files": data.content(_beside(system, config)),
        "code": code_version(),
    }
