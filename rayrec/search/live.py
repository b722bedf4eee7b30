"""The search as it goes: a table of the best trials on a terminal, a line a trial elsewhere."""

import math
import sys
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from rayrec.search.results import Results, Told
from rayrec.search.suggest import NUMBER, TRIAL, VALUES

_SHOWN = 8


class Following(Callback):
    """Collects what every trial tells, and shows it."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._known: dict[str, Told] = {}  # by Tune's id: who goes on from another's state gets its configuration whole
        self._live = Live(console=Console(), auto_refresh=False) if sys.stdout.isatty() else None

    def setup(
        self, stop: Any = None, num_samples: int | None = None, total_num_samples: int | None = None, **info: Any
    ) -> None:
        if self._live is not None:
            self._live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._find(trial)
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._find(trial).add(result)
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._find(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        told = self._find(trial)
        told.error = told.error or _reason(trial)
        self._end(told)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def _find(self, trial: Any) -> Told:
        what = trial.config[TRIAL]
        told = self._known.get(trial.trial_id)
        if told is None:
            told = self._known[trial.trial_id] = Told(what[NUMBER], what[VALUES])
            self._results.told.append(told)
        told.values = what[VALUES]  # a population's values change on the way
        return told

    def _end(self, told: Told) -> None:
        told.ended = True
        if self._live is None:
            print(closing_line(told, self._results), flush=True)
        self._show()

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(best_table(self._results, _SHOWN), refresh=True)


def closing_line(told: Told, results: Results) -> str:
    """One line for a trial that has ended."""
    values = "  ".join(f"{path.rpartition('.')[2]}={_short(value)}" for path, value in told.values.items())
    if told.error:
        return f"trial {told.number:>3}  failed: {told.error}  {values}"
    best = results.ranked()
    mark = "  best so far" if best and best[0] is told else ""
    return f"trial {told.number:>3}  {told.status:8}  {told.value:.4f}  step {told.last.get('step', 0)}  {values}{mark}"


def best_table(results: Results, most: int) -> Table:
    """The best trials so far, and those that run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", results.search.config.objective.metric, "step", "status"):
        table.add_column(name, justify="right" if name != "status" else "left")
    for path in results.search.config.space:
        table.add_column(path.rpartition(".")[2], justify="right")
    ranked = results.ranked()
    running = [told for told in results.told if not told.ended and told not in ranked[:most]]
    for told in [*ranked[:most], *running]:
        value = "-" if math.isnan(told.value) else f"{told.value:.4f}"
        status = told.status if told.ended else "running"
        shown = [_short(told.values[path]) for path in results.search.config.space]
        table.add_row(str(told.number), value, str(told.last.get("step", 0)), status, *shown)
    return table


def _reason(trial: Any) -> str:
    """Why Tune gave a trial up: the last line of what it kept."""
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return f"its process ended again and again: {lines[-1]}" if lines else "its process was lost again and again"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
