"""The only Tuner: a search from its file to its report. The same command goes on where a killed one was."""

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune

from rayrec import __version__, storage
from rayrec.binding import SEARCH, bind, is_bound, package_versions
from rayrec.config import Config, fingerprint
from rayrec.data.beside import Beside, read_beside
from rayrec.names.tables import initial_table
from rayrec.preparation import answer_settings, prepare_beside, prepare_rows, prepare_table
from rayrec.report import SearchReportData, write_search_report
from rayrec.search.config import DRAWN_AT_ONCE, Search, as_yaml
from rayrec.search.live import Following
from rayrec.search.results import Results
from rayrec.search.schedule import scheduler
from rayrec.search.space import Values, data_variants
from rayrec.search.suggest import NUMBER, TRIAL, Suggester
from rayrec.search.trial import Claims, Trial, TrialSetting, data_key
from rayrec.stages import STAGES, StageName, Stream
from rayrec.store import Prepared, store_folder
from rayrec.training.cluster import capacity, connected
from rayrec.training.model import quiet_libraries, warn_of_slow_bf16
from rayrec.training.progress import Gate, beside_the_driver
from rayrec.training.trackers import check_trackers, tune_callbacks

# Of a trial's own process, which waits while its workers compute: no CPU, so that a cluster of exactly the workers'
# size holds it, but Ray wants something to place.
_TRIAL = {"memory": 256.0 * 2**20}
_TRIES = 3  # of a trial whose process is lost
SUMMARY = "search.json"
_UNBOUND = {"name", "budget", "concurrent"}  # settings that may change under one name


def run_search(search: Search) -> None:
    """Run every trial that is not on record yet, then write the results."""
    _quieten()
    check_trackers(search.base.trackers)
    warn_of_slow_bf16(search.base, search.base.stages.lineage(search.stage))
    folder = storage.join(storage.absolute(search.base.storage), search.config.name)
    print(f"rayrec {__version__}  search {search.config.name}: {search.stage}, {search.trials} trials  ->  {folder}")
    storage.check_writable(folder)
    bound = is_bound(folder, SEARCH, search.identity)
    storage.sweep(folder)
    if not bound:
        bind(folder, SEARCH, search.identity, search.config.model_dump(mode="json", include=_UNBOUND))
    if _is_finished(search, folder):
        print("all trials are complete; nothing to do")
    else:
        with connected(search.base.cluster, dashboard=True) as room:
            results = _run_trials(search, folder, concurrent_trials(search, room))
        _write(results, folder)
    _print_result(folder)


def concurrent_trials(search: Search, room: dict[str, float]) -> int:
    """Trials that fit at once; a trial's own process takes no CPU of the cluster's count.

    Raises:
        InputError: not even one fits.
    """
    fitting = capacity(search.base.cluster, room)
    return min(fitting, search.config.concurrent or fitting, search.trials)


def _quieten() -> None:
    """Before Tune is used: no tables of its own, no logger files of its own, no advice."""
    quiet_libraries()
    for name, value in (
        ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
        ("TUNE_DISABLE_SIGINT_HANDLER", "1"),  # an interrupt is the job's to handle
        ("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0"),
        ("RAY_AIR_NEW_OUTPUT", "0"),
        ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1"),  # nothing waits for it: the gate tells of evaluations
    ):
        os.environ.setdefault(name, value)


def _is_finished(search: Search, folder: str) -> bool:
    path = storage.join(folder, SUMMARY)
    return storage.exists(path) and json.loads(storage.read_text(path))["finished"] >= search.trials


def _run_trials(search: Search, folder: str, concurrent: int) -> Results:
    store, records = store_folder(search.base), storage.join(folder, "tune")
    place = beside_the_driver()
    claims = Claims.options(scheduling_strategy=place).remote()  # type: ignore[attr-defined]
    gate = Gate.options(scheduling_strategy=place).remote()  # type: ignore[attr-defined]
    results = Results(search, [])
    storage.delete(records)  # Tune's own, of a killed command; the trials tell again what they told
    hours = search.config.budget.hours
    suggester = Suggester(search, storage.join(folder, "suggestions.jsonl"))
    # These schedulers compare the trials that Tune has started, so it starts all of them, and some wait for a place.
    at_once = isinstance(search.config.scheduler, DRAWN_AT_ONCE)
    places = concurrent if at_once else None
    setting = TrialSetting(search, store, _prepare(search, store), claims, gate, places)
    first = [suggester.suggest(str(i))[TRIAL] for i in range(search.trials)] if at_once else []
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, setting=setting), _TRIAL),
        param_space={TRIAL: tune.grid_search(first)} if at_once else None,
        tune_config=tune.TuneConfig(
            search_alg=None if at_once else suggester,
            scheduler=scheduler(search),
            num_samples=1 if at_once else search.trials,
            max_concurrent_trials=None if at_once else concurrent,
            time_budget_s=hours * 3600 if hours else None,
            trial_dirname_creator=lambda trial: f"trial-{trial.config[TRIAL][NUMBER]:03d}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            callbacks=[Following(results), *tune_callbacks(search.base.trackers, folder)],
            failure_config=tune.FailureConfig(max_failures=_TRIES),
            verbose=0,
        ),
    )
    tuner.fit()
    if not search.base.trackers.tensorboard:  # whose files lie there
        storage.delete(records)
    results.told.sort(key=lambda told: told.number)
    return results


def _prepare(search: Search, store: str) -> dict[str, str]:
    """Every variant of the data that the space asks for, with what the stages of the search read beside it."""
    reads_text = any(stream.uses_backbone for stream in _streams(search.base, search.stage))
    folders = {}
    for values in data_variants(search.config.space, search.config.name):
        config = search.trial_config(values)
        what = {"data": config.data.model_dump(mode="json"), "seed": config.seed}
        what |= {"backbone": list(config.backbone.sources)} if reads_text else {}
        what |= answer_settings(config)
        data = Prepared(storage.join(store, "data", fingerprint(what)[:16]))
        prepare_rows(config, data)
        prepare_beside(config, data, read_by_trials(search, values))
        prepare_table(config, data, initial_table(config))
        folders[data_key(search, values)] = data.folder
    return folders


def read_by_trials(search: Search, values: Values) -> set[Beside]:
    """What any trial on this data may read: a path of the space may be what asks for it."""
    changes = [{path: value} for path, drawn in search.config.space.items() for value in drawn.corners]
    configs = [search.trial_config(change | values) for change in ({}, *changes)]
    return {beside for config in configs for beside in read_beside(config, *_streams(config, search.stage))}


def _streams(config: Config, stage: StageName) -> list[Stream]:
    """What the stages up to this one read."""
    return [STAGES[one].reads for one in config.stages.lineage(stage)]


def _write(results: Results, folder: str) -> None:
    """Tables, report and the best configuration; ``search.json`` last, since it says that the search is finished."""
    search, trials = results.search, results.trials()
    best = results.best_config()
    for name, frame in (("trials", trials), ("evaluations", results.evaluations())):
        sink = io.BytesIO()
        frame.to_parquet(sink, index=False)
        storage.write_bytes(storage.join(folder, f"{name}.parquet"), sink.getvalue())
    if best is not None:
        storage.write_text(storage.join(folder, "best.yaml"), as_yaml(best))
    ended = trials[trials["status"] != "interrupted"]
    summary = {
        "finished": len(ended),
        "comparable": comparable(search),
        "record": _record(results),
        "importance": results.importance(),
    }
    storage.write_text(storage.join(folder, SUMMARY), json.dumps(summary, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        write_search_report(_report(results, folder, summary), Path(scratch))
        storage.upload(Path(scratch), storage.join(folder, "report"))


def comparable(search: Search) -> str:
    """Equal for searches over the same space that differ in scheduler alone."""
    identity = search.identity
    return fingerprint({"base": identity["base"], **{k: v for k, v in identity["search"].items() if k != "scheduler"}})


def _record(results: Results) -> dict[str, Any]:
    trials, ranked = results.trials(), results.ranked()
    return {
        "search": results.search.config.name,
        "scheduler": results.search.config.scheduler.kind,
        "trials": len(trials),
        "best trial": ranked[0].number if ranked else None,
        "best value": ranked[0].value if ranked else None,
        "optimizer steps": int(trials["steps"].sum()),
        "planned steps": int(trials["planned_steps"].sum()),
        "seconds": float(trials["seconds"].sum()),
    }


def _report(results: Results, folder: str, summary: dict[str, Any]) -> SearchReportData:
    search = results.search
    best = results.best_config()
    return SearchReportData(
        title=f"{search.config.name}: search of {search.stage} on {search.base.data.dataset}",
        metric=search.config.objective.metric,
        mode=search.config.objective.mode,
        space={path: distribution.describe() for path, distribution in search.config.space.items()},
        trials=results.trials(),
        evaluations=results.evaluations(),
        importance=summary["importance"],
        schedulers=[summary["record"], *_siblings(folder, summary)],
        best_yaml=as_yaml(best) if best else "",
        versions=package_versions(),
        notes=_notes(search),
    )


def _siblings(folder: str, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of other searches in this storage over the same space, under other schedulers."""
    parent, own = folder.rpartition("/")[::2]
    found = []
    for name in storage.names(parent):
        path = storage.join(parent, name, SUMMARY)
        if name != own and storage.exists(path):
            other = json.loads(storage.read_text(path))
            if other["comparable"] == summary["comparable"]:
                found.append(other["record"])
    return found


def _notes(search: Search) -> list[str]:
    notes = [
        "Every value is on validation data, and the best of many such values is an optimistic one: only a run of"
        " best.yaml with other seeds, judged on the test set, says what was gained.",
        "Each trial has one seed; differences that are small against the spread over seeds mean nothing.",
        "Steps are those that a trial reported; what was on record from other searches of the same storage was told"
        " again and not trained again.",
    ]
    if search.base.data.dataset == "synthetic":
        notes.insert(0, "The data is generated: these figures show that the machinery works and nothing else.")
    return notes


def _print_result(folder: str) -> None:
    trials = pd.read_parquet(io.BytesIO(storage.read_bytes(storage.join(folder, "trials.parquet"))))
    failed, stopped = (int((trials["status"] == status).sum()) for status in ("failed", "stopped"))
    record = json.loads(storage.read_text(storage.join(folder, SUMMARY)))["record"]
    share = record["optimizer steps"] / max(1, record["planned steps"])
    print(
        f"{len(trials)} trials, {stopped} stopped early, {failed} failed;"
        f" {record['optimizer steps']:,} optimizer steps, {share:.0%} of full training"
    )
    if record["best trial"] is None:
        print("no trial reached a value; their reasons are in trials.parquet and the report")
    else:
        print(f"best trial {record['best trial']}: {record['best value']:.4f}  ->  {storage.join(folder, 'best.yaml')}")
    print(f"report  {storage.join(folder, 'report', 'index.html')}")
