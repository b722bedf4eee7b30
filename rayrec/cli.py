"""What all jobs share: ``--config``, ``--set``, ``--plan``, one line and exit code 2 for bad input."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rayrec import ending
from rayrec.config import Config
from rayrec.errors import Abandoned, InputError
from rayrec.settings import load
from rayrec.stages import StageName
from rayrec.systems import SystemName

if TYPE_CHECKING:
    from rayrec.benchmark.settings import Benchmark
    from rayrec.experiment.settings import Experiment
    from rayrec.recommendation.job import Order
    from rayrec.search.config import Search

_INTERRUPTED = 130  # as a shell tells of SIGINT


def parser(description: str, *, config: bool = True, plan: bool = True) -> argparse.ArgumentParser:
    """The options that every job takes, but for those that it has no use for."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if config:
        options.add_argument(
            "--config", type=Path, metavar="FILE", help="YAML; says only what differs from the defaults"
        )
    options.add_argument(
        "--set", action="append", default=[], metavar="dotted.path=value", help="override one key; may be repeated"
    )
    if plan:
        options.add_argument(
            "--plan", action="store_true", help="check everything, print what would run, train nothing"
        )
    return options


def configured(options: argparse.Namespace, default: Path) -> Config:
    """The configuration that the options name; ``default`` where they name none."""
    return load(options.config or default, options.set)


def run(job: Callable[[], None], *, interrupted: str = "the same command goes on from the last checkpoint") -> None:
    """Run a job and end the process: 0 done, 1 failed, 2 bad input, 130 ``interrupted``, which says what is left."""
    sys.exit(_status(job, interrupted))


def _status(job: Callable[[], None], interrupted: str) -> int:
    # Before any library is imported: a run has one progress line, its own.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a call to Ray after its end starts another one
    try:
        job()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        if isinstance(stop, Abandoned):
            ending.at_once(_INTERRUPTED)
        return _INTERRUPTED
    except Exception as error:
        if os.environ.get("RAYREC_TRACEBACK"):
            raise
        print(f"failed: {error} (RAYREC_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    return 0


def main(
    description: str, default: Path, act: Callable[[Config], None], arguments: Sequence[str] | None = None
) -> None:
    """A whole job: parse, then plan or act."""
    options = parser(description).parse_args(arguments)
    run(lambda: _plan_or(act, options, default))


def main_for_stage(description: str, default: Path, act: Callable[[Config, StageName], None]) -> None:
    """The same for a job whose one argument is a stage."""
    options = parser(description)
    options.add_argument("stage", choices=[stage.value for stage in StageName])
    found = options.parse_args()
    run(lambda: _plan_or(lambda config: act(config, StageName(found.stage)), found, default))


def main_for_search(description: str, default: Path, act: Callable[["Search"], None]) -> None:
    """The same for a search, whose file is not a run's; its values are set by ``--set`` alike."""
    options = parser(description).parse_args()

    def job() -> None:
        from rayrec.search.config import load_search  # noqa: PLC0415

        search = load_search(options.config or default, options.set)
        if options.plan:
            from rayrec.search.plan import print_search_plan  # noqa: PLC0415

            print_search_plan(search)
        else:
            act(search)

    run(job)


def main_for_experiment(description: str, default: Path, act: Callable[["Experiment"], None]) -> None:
    """The same for an experiment, whose file names several systems and seeds."""
    options = parser(description).parse_args()

    def job() -> None:
        from rayrec.experiment.settings import load_experiment  # noqa: PLC0415

        experiment = load_experiment(options.config or default, options.set)
        if options.plan:
            from rayrec.experiment.plan import print_experiment_plan  # noqa: PLC0415

            print_experiment_plan(experiment)
        else:
            act(experiment)

    run(job)


def main_for_benchmark(description: str, default: Path, act: Callable[["Benchmark"], None]) -> None:
    """The same for a benchmark; what it measures is fixed by its file, and there is nothing to plan."""
    options = parser(description, plan=False).parse_args()

    def job() -> None:
        from rayrec.benchmark.settings import load_benchmark  # noqa: PLC0415

        act(load_benchmark(options.config or default, options.set))

    run(job)


def main_for_recommendation(description: str, act: Callable[["Order"], None]) -> None:
    """The same for lists of recommendations, which are by a run that is there."""
    options = parser(description, config=False, plan=False)
    options.add_argument("--run", required=True, metavar="FOLDER", help="of a run whose stages are complete")
    options.add_argument("--system", required=True, help="one of the run's, such as sasrec; a wrong one tells which")
    options.add_argument("--sessions", required=True, metavar="PARQUET", help="a file or folder: session_id, items")
    options.add_argument("--out", required=True, metavar="PARQUET", help="the file to write: session_id, items, scores")
    options.add_argument("--k", type=_positive, default=20, help="places of a list (default: %(default)s)")
    options.add_argument(
        "--candidates", type=_positive, help="of the encoder that a language model puts in order (default: 100)"
    )
    options.add_argument("--titles", action="store_true", help="write titles beside the ids")
    given = vars(options.parse_args())

    def job() -> None:
        from rayrec.recommendation.job import Order  # noqa: PLC0415

        act(Order(overrides=given.pop("set"), system=_system(given.pop("system")), **given))

    run(job, interrupted="nothing was written; the same command begins again")


def _system(name: str) -> SystemName:
    try:
        return SystemName(name)
    except ValueError:
        raise InputError(f"--system {name}: there is none; choose one of {', '.join(SystemName)}") from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _plan_or(act: Callable[[Config], None], options: argparse.Namespace, default: Path) -> None:
    config = configured(options, default)
    if options.plan:
        from rayrec.planning import print_plan  # noqa: PLC0415  (torch; --help stays quick)

        print_plan(config)
    else:
        act(config)
