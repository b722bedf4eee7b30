"""``--plan`` of an experiment: all that can be known before the first pair."""

from collections.abc import Sequence

import yaml
from rich.console import Console
from rich.markup import escape

from rayrec import storage
from rayrec.binding import EXPERIMENT, is_bound
from rayrec.experiment.pairs import Variant, all_pairs, experiment_folder, variants
from rayrec.experiment.settings import Experiment
from rayrec.experiment.study import is_prepared
from rayrec.training.cluster import check_fits, local_limit
from rayrec.training.parts import is_complete
from rayrec.training.trackers import check_trackers


def print_experiment_plan(experiment: Experiment) -> None:
    """Check what can be checked; print systems, seeds, what is left to do, and places.

    Raises:
        InputError: one of the checks fails.
    """
    config, folder = experiment.config, experiment_folder(experiment)
    storage.check_writable(folder)
    is_bound(folder, EXPERIMENT, experiment.identity)
    check_trackers(experiment.base.trackers)
    there = variants(experiment)
    limit = local_limit()
    for variant in there if limit is not None else ():
        for of_system in variant.configs:
            check_fits(of_system.cluster, limit or {})
    console = Console(width=100, highlight=False)
    seeds = ", ".join(map(str, config.seeds))
    console.print(
        f"{config.name}: {experiment.base.data.dataset}, {len(config.systems)} systems, training seeds {seeds}"
    )
    for title, entry in config.systems.items():
        stages = " -> ".join(experiment.stages(title)) or "nothing to train, one seed"
        own = yaml.safe_dump(dict(entry.set), default_flow_style=True, width=10_000).strip() if entry.set else ""
        console.print(escape(f"  {title}  {entry.system}: {stages}  {own}".rstrip()), no_wrap=True, overflow="ellipsis")
    console.print(escape(f"reference  {config.reference}"))
    for line in _folds(experiment.folds or 0, there):
        console.print(line)
    console.print(f"data       {len(there)} variant(s)")
    console.print(f"left       {_left(experiment)}")
    console.print(f"output     {folder}", soft_wrap=True)


def _folds(folds: int, there: Sequence[Variant]) -> list[str]:
    """Which blocks of the order of time each fold reads, and how many rows once they are prepared."""
    lines = []
    for fold in range(1, folds + 1):
        trained = "block 1" if fold == 1 else f"blocks 1 to {fold}"
        line = f"fold {fold:<6}{trained} of {folds + 2} train, {fold + 1} valid, {fold + 2} test"
        data = next(variant.data for variant in there if variant.fold == fold)
        if data.is_complete:
            rows = ", ".join(f"{counts['rows']:,}" for counts in data.manifest["splits"].values())
            line += f"; {rows} rows"
        lines.append(line)
    return lines


def _left(experiment: Experiment) -> str:
    """Pairs without predictions, and the stages that they need and nobody has trained."""
    if not is_prepared(experiment):
        count = len(experiment.each_fold) * sum(len(experiment.seeds(title)) for title in experiment.config.systems)
        return f"{count} pairs at most; what of them the storage holds is known once the data is prepared"
    pairs = all_pairs(experiment)
    missing = [pair for pair in pairs if not pair.is_finished]
    stages = {job.fingerprint for pair in missing for job in pair.jobs.values() if not is_complete(job)}
    return f"{len(missing)} of {len(pairs)} pairs, for which {len(stages)} stages are to be trained"
