"""Which values come next, as a Ray Tune searcher whose suggestions follow from the seed and the results alone.

The first trial of a sampler is the base configuration itself, so that a search never recommends less than one started
with. (A grid is what its user wrote.)

Nothing is saved: a resumed search asks and tells again in the same order, finished trials answering from the store.
"""

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from rayrec.search.config import Search
from rayrec.search.space import Values, grid, value_at

TRIAL, NUMBER, VALUES = "trial", "number", "values"  # {trial: {number, values}}: a trial as Tune knows it
OBJECTIVE = "objective"  # of a trial's results: the best value so far
_STARTUP = 5  # trials before TPE's first estimate; Optuna's ten would be nearly all of a small search


class Suggester(Searcher):
    """Random, grid, or Optuna's TPE (https://arxiv.org/abs/2304.11127)."""

    def __init__(self, search: Search) -> None:
        super().__init__(metric=OBJECTIVE, mode=search.config.objective.mode)
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
        values = self._grid[number] if self._grid is not None else self._draw(trial_id)
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

    def _draw(self, trial_id: str) -> Values:
        trial = self._study.ask({path: distribution.optuna for path, distribution in self._space.items()})
        self._asked[trial_id] = trial
        return {path: distribution.value(trial.params[path]) for path, distribution in self._space.items()}

    def save(self, checkpoint_path: str) -> None:
        """An empty file: the state follows from the order of asking and telling."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see ``save``."""


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
