"""What the trials told: a table of trials, a table of evaluations, importances, the best configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
import pandas as pd
from optuna.trial import TrialState, create_trial

from rayrec.config import Config
from rayrec.search.config import Search
from rayrec.search.schedule import EVALUATION
from rayrec.search.space import Values
from rayrec.search.suggest import OBJECTIVE, new_study

_ENOUGH = 8  # trials with a value, below which importances are noise


@dataclass
class Told:
    """One trial as it was told: filled while it runs."""

    number: int
    values: Values
    results: dict[int, dict[str, Any]] = field(default_factory=dict)  # evaluation -> its result
    error: str | None = None
    ended: bool = False

    def add(self, result: Mapping[str, Any]) -> None:
        """A result; the same evaluation told again, after a restart, changes nothing."""
        if result.get("error"):
            self.error = str(result["error"])
        elif EVALUATION in result:
            self.results.setdefault(int(result[EVALUATION]), dict(result))

    @property
    def last(self) -> dict[str, Any]:
        return self.results[max(self.results)] if self.results else {}

    @property
    def value(self) -> float:
        """The best value so far; NaN for none."""
        return math.nan if self.error else float(self.last.get(OBJECTIVE, math.nan))

    @property
    def status(self) -> str:
        if self.error:
            return "failed"
        if self.last.get("last"):  # Tune's own "done" is also said of what a scheduler stopped
            return "complete"
        return "stopped" if self.ended else "interrupted"


@dataclass(frozen=True)
class Results:
    """All trials of a search."""

    search: Search
    told: list[Told]

    def trials(self) -> pd.DataFrame:
        """One row a trial: status, value, where it was reached, steps, seconds, and the space's values."""
        rows = []
        for trial in self.told:
            reached = [r["step"] for _, r in sorted(trial.results.items()) if r[OBJECTIVE] == trial.value]
            rows.append(
                {
                    "trial": trial.number,
                    "status": trial.status,
                    "reason": trial.error,
                    "value": trial.value,
                    "best_step": reached[0] if reached else 0,
                    "steps": int(trial.last.get("step", 0)),
                    "planned_steps": self._planned(trial),
                    "seconds": sum(r.get("time_this_iter_s", 0.0) for r in trial.results.values()),
                    **{path: _cell(value) for path, value in trial.values.items()},
                }
            )
        table: pd.DataFrame = pd.DataFrame(rows)
        for path in self.search.config.space:
            kinds = {type(value) for value in table[path]}
            if str in kinds and len(kinds) > 1:  # a column of a file has one type; a choice may be `auto` or a number
                table[path] = table[path].map(str)
        return table

    def evaluations(self) -> pd.DataFrame:
        """Every evaluation: trial, step, the metric's value."""
        metric = self.search.config.objective.metric
        rows = [
            {"trial": trial.number, "step": int(result["step"]), "value": float(result[metric])}
            for trial in self.told
            for _, result in sorted(trial.results.items())
        ]
        table: pd.DataFrame = pd.DataFrame(rows, columns=["trial", "step", "value"])
        return table

    def ranked(self) -> list[Told]:
        """Trials with a value, best first; of equals the earlier."""
        sign = -1 if self.search.config.objective.mode == "max" else 1
        return sorted((t for t in self.told if not math.isnan(t.value)), key=lambda t: (sign * t.value, t.number))

    def best_config(self) -> Config | None:
        """What ``full_pipeline`` runs: the base with the best trial's values, under a name of its own."""
        ranked = self.ranked()
        if not ranked:
            return None
        return self.search.trial_config(ranked[0].values | {"name": f"{self.search.config.name}-best"})

    def importance(self) -> dict[str, float]:
        """Share of the variance of the value that each path explains: fANOVA, Hutter et al. 2014, through Optuna."""
        space = self.search.config.space
        valued = [trial for trial in self.told if not math.isnan(trial.value)]
        if len(valued) < _ENOUGH or len({trial.value for trial in valued}) == 1:
            return {}
        study = new_study(self.search)
        for trial in valued:
            drawn = {
                path: distribution.choice.index(trial.values[path]) if distribution.choice else trial.values[path]
                for path, distribution in space.items()
            }
            distributions = {path: distribution.optuna for path, distribution in space.items()}
            study.add_trial(
                create_trial(params=drawn, distributions=distributions, value=trial.value, state=TrialState.COMPLETE)
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.search.config.seed)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))

    def _planned(self, trial: Told) -> int:
        """Steps of the whole stage, as its first evaluation tells them."""
        if not trial.results:
            return 0
        first = trial.results[min(trial.results)]
        per_epoch = int(first["step"]) // int(first[EVALUATION])
        return per_epoch * self.search.trial_config(trial.values).stages[self.search.stage].epochs


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {held}" for key, held in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
