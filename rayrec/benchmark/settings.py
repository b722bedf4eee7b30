"""A benchmark as its user writes it."""

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, ValidationError

from rayrec.config import Config
from rayrec.config.section import Section
from rayrec.errors import InputError
from rayrec.settings import explain, load, override, read_tree, validate, with_values
from rayrec.stages import ENCODERS, VALID_K, Loss, Task


class Subject(str, Enum):
    """What is compared."""

    ENCODER = "encoder"
    RANKING = "ranking"  # of next items alone
    LORA = "lora"
    HYBRID = "hybrid"
    RERANKING = "reranking"
    METRICS = "metrics"
    GROUPS = "groups"
    COMPILE = "compile"  # it compiles for minutes


_OF_CLICKS = (Subject.LORA, Subject.HYBRID, Subject.RERANKING, Subject.GROUPS, Subject.COMPILE)
_BY_NAME = (Subject.RANKING, Subject.COMPILE)


class BenchmarkConfig(Section):
    name: str = Field("benchmark", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: str  # configuration file, from this file's folder: data, backbone and stages that are measured
    set: Mapping[str, Any] = {}  # dotted path -> value, on top of the base
    subjects: tuple[Subject, ...] = tuple(subject for subject in Subject if subject not in _BY_NAME)
    rounds: PositiveInt = 3  # that count, after one of each side that does not
    steps: PositiveInt = 4  # batches of a round
    encoder_steps: PositiveInt = 60  # the same where the encoder trains alone
    rectools: str | None = None  # the Python of an environment with rectools[torch], which wants older packages than we
    groups_steps: int = Field(12, ge=4)  # optimizer steps of one worker, and of two
    ranked_sessions: PositiveInt = 22_000  # of vectors that are drawn, about as many as Amazon Beauty's 5-core has
    ranked_items: PositiveInt = Field(12_000, ge=VALID_K)
    candidates: PositiveInt = 100  # of one user, to re-rank
    metric_rows: PositiveInt = 10_000_000
    metric_users: PositiveInt = 100_000


class Benchmark(Section):
    """A checked benchmark with its base configuration resolved; it runs in one process with all its threads."""

    config: BenchmarkConfig
    base: Config


def load_benchmark(path: Path, overrides: Sequence[str] = ()) -> Benchmark:
    """Read and check a benchmark file.

    Raises:
        InputError: the file or its base cannot be used; one line says why.
    """
    tree = override(read_tree(path), overrides, by_path=("set",))
    try:
        config = BenchmarkConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, BenchmarkConfig)}") from None
    plain = load(path.parent / config.base).model_dump(mode="json")
    base = validate(with_values(plain, config.set), f"{path}: set")
    _check(path, config, base)
    return Benchmark(config=config, base=base)


def _check(path: Path, config: BenchmarkConfig, base: Config) -> None:
    """Raises ``InputError`` where the base has nothing to measure a subject with."""
    task, kind = base.data.task, base.encoder.kind
    for subject in config.subjects:
        wanted = Task.CLICK if subject in _OF_CLICKS else Task.NEXT_ITEM if subject is Subject.RANKING else task
        if task is not wanted:
            raise InputError(f"{path}: subjects: {subject.value} is of data.task {wanted}, and the base of {task}")
        if subject is Subject.RANKING and Loss.NEXT_ITEM not in ENCODERS[kind].losses:
            raise InputError(f"{path}: subjects: ranking wants an encoder that reads forwards, and {kind} does not")
