"""Which values come next, as a Ray Tune searcher whose suggestions follow from the seed and the results alone.

The first trial of a sampler is the base configuration itself, so that a search never recommends less than one started
with. (A grid is what its user wrote.)

A resumed search asks and tells again, finished trials answering from the store. With one trial at a time the same order
gives the same suggestions; with several, answers come in another order, so what was suggested is on record and holds.
"""

import json
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from rayrec import storage
from rayrec.search.config import Search
from rayrec.search.space import Values, grid, value_at

TRIAL, NUMBER, VALUES = "trial", "number", "values"  # {trial: {number, values}}: a trial as Tune knows it
OBJECTIVE = "objective"  # of a trial's results: the best value so far
_STARTUP = 5  # trials before TPE's first estimate; Optuna's ten would be nearly all of a small search


class Suggester(Searcher):
    """Random, grid, or Optuna's TPE (https://arxiv.org/abs/2304.11127)."""

    def __init__(self, search: Search, record: str | None = None) -> None:
        """``record``: the file, a path or URI, that suggestions are kept in."""
        super().__init__(metric=OBJECTIVE, mode=search.config.objective.mode)
        self._record, self._known = record, _read(record)
        self._space, self._trials = search.config.space, search.trials
        self._grid = grid(self._space) if search.config.algorithm == "grid" else None
        self._study = new_study(search)
        self._asked: dict[str, optuna.Trial] = {}
        self._count = 0

    def suggest(self, trial_id: str) -> Any:
        """``{trial: {number, values}}``; FINISHED behind the last."""
        if self._count >= self._trials:
            return Searcher.FINISHED
        number, self._count = self._count, self._count + 1
        values = self._grid[number] if self._grid is not None else self._draw(trial_id, number)
        return {TRIAL: {NUMBER: number, VALUES: values}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the sampler how a trial ended; a failed one has no value."""
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        value = math.nan if result is None or error else float(result.get(OBJECTIVE, math.nan))
        if math.isnan(value):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, value)

    def _draw(self, trial_id: str, number: int) -> Values:
        space = {path: distribution.optuna for path, distribution in self._space.items()}
        trial = self._study.ask(space)  # also where the answer is known: it moves the sampler on
        if number >= len(self._known):
            self._known.append(trial.params)
            self._keep()
        elif trial.params != self._known[number]:
            self._study.tell(trial, state=TrialState.FAIL)
            self._study.enqueue_trial(self._known[number])
            trial = self._study.ask(space)
        self._asked[trial_id] = trial
        return {path: distribution.value(trial.params[path]) for path, distribution in self._space.items()}

    def _keep(self) -> None:
        if self._record is not None:
            storage.write_text(self._record, "".join(json.dumps(params) + "\n" for params in self._known))

    def save(self, checkpoint_path: str) -> None:
        """An empty file: the state follows from the order of asking and telling."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see ``save``."""


def _read(record: str | None) -> list[dict[str, Any]]:
    if record is None or not storage.exists(record):
        return []
    return [json.loads(line) for line in storage.read_text(record).splitlines()]


def new_study(search: Search) -> optuna.Study:
    """An empty study with the search's sampler."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = search.config.seed
    sampler: BaseSampler = RandomSampler(seed=seed)
    if search.config.algorithm == "tpe":
        sampler = TPESampler(seed=seed, n_startup_trials=_STARTUP)
    maximize = search.config.objective.mode == "max"
    direction = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
    study = optuna.create_study(sampler=sampler, direction=direction)
    study.enqueue_trial(_of_base(search))
    return study


def _of_base(search: Search) -> Values:
    """What a sampler would have drawn for the base configuration; a path whose value lies outside is left to it."""
    values = {path: value_at(search.base, path) for path in search.config.space}
    drawn = {path: distribution.drawn(values[path]) for path, distribution in search.config.space.items()}
    return {path: value for path, value in drawn.items() if value is not None}
