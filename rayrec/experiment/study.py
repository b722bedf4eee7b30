"""An experiment from its file to its tables. Its pairs are those of system and seed, fold by fold if there are several.

The same command goes on where a killed one was; it tries again what failed and repeats nothing that is finished.
"""

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rayrec import __version__, storage
from rayrec.binding import EXPERIMENT, bind, is_bound, package_versions
from rayrec.data import columns as c
from rayrec.data.catalogue import training_counts
from rayrec.data.rows import RowSource
from rayrec.data.vectors import has_vectors
from rayrec.errors import InputError
from rayrec.evaluation.next_item import rerank_note
from rayrec.evaluation.sample import describe_sample, test_sample
from rayrec.experiment.evidence import gather, row_counts
from rayrec.experiment.folds import summarise_folds
from rayrec.experiment.list_results import summarise_lists
from rayrec.experiment.pairs import Pair, all_pairs, experiment_folder, name_tables, variants
from rayrec.experiment.results import Told
from rayrec.experiment.running import Failures, run_pairs
from rayrec.experiment.settings import Experiment
from rayrec.experiment.traces import read_progress, trained_parameters
from rayrec.next_item.hybrids import HYBRIDS
from rayrec.pipeline import quieten
from rayrec.preparation import prepare_beside, prepare_rows, prepare_table
from rayrec.report import (
    ExperimentReportData,
    ListExperimentReportData,
    write_experiment_report,
    write_list_experiment_report,
)
from rayrec.run import Run
from rayrec.stages import VALID_K, Stream, Task
from rayrec.store import store_folder
from rayrec.systems import SYSTEMS, SystemName
from rayrec.training.cluster import capacity, check_fits, connected
from rayrec.training.model import warn_of_slow_bf16
from rayrec.training.trackers import check_trackers

RESULTS = "results.json"
_UNBOUND = {"name", "systems", "seeds", "reference"}  # what may change under one name
_ROWS = [c.USER_ID, c.ITEM_ID, c.LABEL, c.IS_WARM, c.IS_STRICT_COLD]
_SHOWN = {"auc": "AUC", "uauc": "UAUC", "log_loss": "log loss"}  # of clicks, in the terminal


class ExperimentError(RuntimeError):
    """Some pairs failed; their reasons were printed and are in ``results.json``."""


def run_experiment(experiment: Experiment) -> None:
    """Prepare the data, run every pair that has no predictions yet, write the tables.

    Raises:
        InputError: the name holds another experiment, the data cannot be prepared, or the systems' test rows differ.
        ExperimentError: a pair failed; what the others gave is written.
    """
    quieten()
    base, folder = experiment.base, experiment_folder(experiment)
    check_trackers(base.trackers)
    warn_of_slow_bf16(base, {stage for title in experiment.config.systems for stage in experiment.stages(title)})
    print(f"rayrec {__version__}  experiment {experiment.config.name}  ->  {folder}", flush=True)
    storage.check_writable(folder)
    bound = is_bound(folder, EXPERIMENT, experiment.identity)
    storage.sweep(folder)
    failures = Failures()
    if bound and is_prepared(experiment) and all(pair.is_finished for pair in all_pairs(experiment)):
        print("all pairs are complete; nothing to train or score")
    else:
        with connected(base.cluster) as room:
            _prepare(experiment, room)
            if not bound:
                bind(folder, EXPERIMENT, experiment.identity, {"name": experiment.config.name})
            run_pairs(all_pairs(experiment), failures, at_once=_at_once(experiment, room))
    pairs = all_pairs(experiment)
    results = _write(experiment, pairs, failures, folder)
    _print_result(results, folder)
    failed = sum(not pair.is_finished for pair in pairs)
    if failed:
        raise ExperimentError(f"{failed} of {len(pairs)} pairs failed; the same command tries them again")


def is_prepared(experiment: Experiment) -> bool:
    """All data that the experiment needs is there."""
    rows = all(variant.data.is_complete and variant.data.has(*variant.beside) for variant in variants(experiment))
    return rows and all(
        has_vectors(data.table_folder(table, store_folder(config))) for config, data, table in name_tables(experiment)
    )


def _prepare(experiment: Experiment, room: dict[str, float]) -> None:
    """Every variant of the data once, with what its systems read beside it."""
    firsts: dict[int | None, tuple[str, pd.DataFrame]] = {}  # of each fold
    for variant in variants(experiment):
        for config in variant.configs:
            check_fits(config.cluster, room)
        config = variant.configs[0].model_copy(update={"seed": experiment.base.seed})
        made = prepare_rows(config, variant.data)
        fold = "" if variant.fold is None else f"fold {variant.fold}, "
        print(f"data  {fold}{'prepared' if made else 'prepared before'}: {variant.data.folder}", flush=True)
        prepare_beside(config, variant.data, variant.beside)
        rows = _sampled_rows(Run(variant.configs[0], prepared=variant.data.folder))
        first = firsts.setdefault(variant.fold, (variant.titles[0], rows))
        if not rows.equals(first[1]):
            raise InputError(
                f"systems.{variant.titles[0]}.set: its test rows are not those of {first[0]!r}, and only the same rows"
                " can be compared; give all systems the same data, but for what prompts show of it"
            )

    for config, data, table in name_tables(experiment):
        prepare_table(config, data, table)


def _at_once(experiment: Experiment, room: dict[str, float]) -> int:
    """How many pairs the cluster holds side by side."""
    configs = [config for variant in variants(experiment) for config in variant.configs]
    return max(1, min(capacity(config.cluster, room) for config in configs))


def _sampled_rows(run: Run) -> pd.DataFrame:
    rows = RowSource(run.data.folder, "test", Stream.INTERACTIONS, run.facts.max_len).open()
    frame: pd.DataFrame = rows.frame(test_sample(run)).to_pandas()[_ROWS]
    return frame


def _write(experiment: Experiment, pairs: Sequence[Pair], failures: Failures, folder: str) -> dict[str, Any]:
    """Predictions under their titles, ``results.json`` and the report; the same pairs give the same bytes."""
    told = _tell(experiment, pairs, failures, storage.join(folder, "predictions"))
    firsts = {fold: next(pair.run for pair in pairs if pair.fold == fold) for fold in told}
    samples = {fold: describe_sample(run) for fold, run in firsts.items()}
    ranks = experiment.base.data.task is Task.NEXT_ITEM
    if ranks:
        counts = training_counts(firsts[None].data.folder)
        results = summarise_lists(experiment, told[None], counts, samples[None])
    else:
        results = summarise_folds(experiment, told, samples)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    storage.write_text(storage.join(folder, RESULTS), text)
    with tempfile.TemporaryDirectory() as scratch:
        if ranks:
            write_list_experiment_report(ListExperimentReportData(**_common(experiment, results)), Path(scratch))
        else:
            evidence = gather(told, {fold: row_counts(run) for fold, run in firsts.items()}, results["cutoff"])
            data = ExperimentReportData(**_common(experiment, results), evidence=evidence)
            write_experiment_report(data, Path(scratch))
        storage.upload(Path(scratch), storage.join(folder, "report"))
    return results


def _tell(
    experiment: Experiment, pairs: Sequence[Pair], failures: Failures, place: str
) -> dict[int | None, dict[str, Told]]:
    """What became of every title in every fold; its predictions are copied to a folder of its own below ``place``."""
    told: dict[int | None, dict[str, Told]] = {fold: {} for fold in experiment.each_fold}
    for title in experiment.config.systems:
        files: dict[str, bytes] = {}
        for fold, of_fold in told.items():
            own = [pair for pair in pairs if (pair.title, pair.fold) == (title, fold)]
            done = [pair for pair in own if pair.is_finished]
            contents = {pair.seed: storage.read_bytes(pair.predictions) for pair in done}
            chosen = {pair.seed: storage.read_bytes(pair.choice) for pair in done if storage.exists(pair.choice)}
            of_fold[title] = Told(
                predictions={seed: pd.read_parquet(io.BytesIO(content)) for seed, content in contents.items()},
                failures={p.seed: failures.pairs.get(p.fingerprint, "not run") for p in own if not p.is_finished},
                chosen={seed: json.loads(content) for seed, content in chosen.items()},
                progress={pair.seed: read_progress(pair) for pair in done},
                parameters=trained_parameters(done[0]) if done else None,
            )
            start = "" if fold is None else f"fold-{fold}-seed-"
            files |= {f"{start}{seed}.parquet": content for seed, content in contents.items()}
            files |= {f"{start}{seed}.json": content for seed, content in chosen.items()}
        _replace(storage.join(place, experiment.slugs[title]), files)
    for name in set(storage.names(place)) - set(experiment.slugs.values()):  # of a title that is no more
        storage.delete(storage.join(place, name))
    return told


def _replace(folder: str, files: Mapping[str, bytes]) -> None:
    """Make these the files of the folder."""
    for name in set(storage.names(folder)) - set(files):
        storage.delete(storage.join(folder, name))
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)


def _common(experiment: Experiment, results: Mapping[str, Any]) -> dict[str, Any]:
    """What the pages of both tasks show."""
    base = experiment.base.model_dump(mode="json", exclude_defaults=True)
    content = {"base": experiment.of_all_folds(base)} | experiment.config.model_dump(mode="json", include=_UNBOUND)
    return {
        "title": f"{experiment.config.name}: {experiment.base.data.dataset}",
        "results": results,
        "config_yaml": yaml.safe_dump(content, sort_keys=False, allow_unicode=True),
        "versions": package_versions(),
        "notes": _notes(experiment),
    }


def _notes(experiment: Experiment) -> list[str]:
    base, ranks = experiment.base, experiment.base.data.task is Task.NEXT_ITEM
    chosen = ", ".join(f"{stage} by {base.judged_by(stage).shown}" for stage in base.run_stages)
    notes = [
        f"Intervals and p values are of a bootstrap over test {'sessions' if ranks else 'users'}; they say nothing of"
        " training seeds other than those that were run. The spread over seeds is their sample standard deviation.",
        "Where nothing is trained, all seeds would give the same predictions: such a system was scored once and has no"
        " spread.",
        "p values are not corrected for how many systems and metrics are compared.",
        f"Checkpoints were chosen on validation: {chosen}, unless a system's settings say otherwise. The test rows were"
        " scored once, at the end.",
    ]
    if not ranks:
        notes.append(f"The backbone ran in {base.engine.precision}; its two answer logits are computed in fp32.")
    if experiment.folds:
        notes.insert(
            2,
            "Each fold trains on all rows before those that it validates and tests on, so the larger training sets hold"
            f" the smaller ones. Intervals and p values are for these {experiment.folds} folds alone.",
        )
    if any(SYSTEMS[entry.system].members for entry in experiment.config.systems.values()):
        notes.append(
            "An ensemble's weights were chosen on the validation rows that its members' checkpoints were chosen on."
        )
    if any(entry.system in HYBRIDS for entry in experiment.config.systems.values()):
        notes.append(f"Of a hybrid's several settings, NDCG@{VALID_K} of all validation sessions chose.")
    notes += _rerank_notes(experiment)
    if base.data.dataset == "synthetic":
        notes.insert(0, "The data is generated: these figures show that the machinery works and nothing else.")
    return notes


def _rerank_notes(experiment: Experiment) -> list[str]:
    titles = [title for title, entry in experiment.config.systems.items() if entry.system is SystemName.SASRECLLM]
    configs = {title: experiment.configuration(title, experiment.config.seeds[0]) for title in titles}
    owns = {title: config.ranking.sasrecllm for title, config in configs.items()}
    return [rerank_note(title, own.candidates) for title, own in owns.items() if own is not None]


def _print_result(results: Mapping[str, Any], folder: str) -> None:
    width = min(40, max(len(title) for title in results["systems"]))
    shown = _SHOWN if "metrics" not in results else {name: name for name in results["metrics"][:4]}
    print(f"{'':{width}}  {'  '.join(f'{header:>15}' for header in shown.values())}  seeds")
    for title, row in results["systems"].items():
        metrics = row["slices"]["all"]["metrics"]
        cells = "  ".join(f"{_cell(metrics.get(name)):>15}" for name in shown)
        print(f"{title[:width]:{width}}  {cells}  {len(row['seeds'])}")
    for title, row in results["systems"].items():
        for seed, reason in row["failures"].items():
            print(f"failed  {title}, seed {seed}: {reason}")
    if "folds" in results:
        print(f"means over {len(results['folds'])} folds, ± over seeds within them; each fold's are in the report")
    print(f"report  {storage.join(folder, 'report', 'index.html')}")


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["mean"] is None:
        return "-"
    return f"{metric['mean']:.4f}" + ("" if metric["sd"] is None else f" ± {metric['sd']:.4f}")
