"""What a search varies: dotted paths of the ordinary configuration and the values each may take."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from rayrec.config import Config
from rayrec.config.section import Section
from rayrec.errors import InputError
from rayrec.settings import validate, with_values
from rayrec.stages import STAGES, StageName

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_MOST_COMBINATIONS = 2000  # of a space's corners that are tried on the configuration; beyond it a seeded sample
_WHOLE = 1_000_000  # values of a range that may be listed

Values = dict[str, Any]  # dotted path -> value


class Distribution(Section):
    """One of: ``choice`` (any values), ``uniform``, ``loguniform`` (floats), ``randint`` (whole, both ends in)."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    randint: tuple[int, int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_a_choice(cls, value: Any) -> Any:
        return {"choice": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _one_kind(self) -> "Distribution":
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError("give a list of values or one of choice, uniform, loguniform, randint")
        if self.choice is None:
            ((kind, (low, high)),) = given.items()
            if not low < high:
                raise ValueError(f"{kind} [{low}, {high}]: the first must be less than the second")
            if kind == "loguniform" and low <= 0:
                raise ValueError(f"loguniform [{low}, {high}]: must be above 0")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values, where they can be listed."""
        if self.choice is not None:
            return self.choice
        if self.randint is not None and self.randint[1] - self.randint[0] < _WHOLE:
            return tuple(range(self.randint[0], self.randint[1] + 1))
        return None

    @property
    def corners(self) -> tuple[Any, ...]:
        """Values that stand for all: every choice, or both ends of a range."""
        if self.choice is not None:
            return self.choice
        return self.uniform or self.loguniform or self.randint or ()

    @property
    def optuna(self) -> "BaseDistribution":
        """For a sampler; of a choice the number of the value is drawn, since values may be lists."""
        from optuna.distributions import (  # noqa: PLC0415  (a second to import; --help stays quick)
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choice is not None:
            return CategoricalDistribution(tuple(range(len(self.choice))))
        if self.randint is not None:
            return IntDistribution(*self.randint)
        low, high = self.uniform or self.loguniform or (0.0, 1.0)
        return FloatDistribution(low, high, log=self.loguniform is not None)

    def value(self, drawn: Any) -> Any:
        """The configuration's value for what a sampler drew."""
        return self.choice[drawn] if self.choice is not None else drawn

    def drawn(self, value: Any) -> Any:
        """What a sampler draws for the configuration's value: the inverse of ``value``; None where it cannot."""
        if self.choice is not None:
            return self.choice.index(value) if value in self.choice else None
        return value if isinstance(value, int | float) and self.inside(value) == value else None

    def inside(self, value: Any) -> Any:
        """``value``, or the nearest end of the range where it lies outside."""
        if self.choice is not None:
            return value
        low, high = self.uniform or self.loguniform or self.randint or (value, value)
        return min(max(value, low), high)

    def describe(self) -> str:
        """In words, for the report."""
        if self.choice is not None:
            return f"one of {', '.join(map(str, self.choice))}"
        if self.randint is not None:
            return f"whole, {self.randint[0]} .. {self.randint[1]}"
        low, high = self.uniform or self.loguniform or (0.0, 1.0)
        return f"{'log-uniform' if self.loguniform else 'uniform'}, {low:g} .. {high:g}"


Space = Mapping[str, Distribution]


def value_at(config: Config, path: str) -> Any:
    """The configuration's value at a dotted path; None where a mapping on the way has no such key."""
    value: Any = config.model_dump(mode="json")
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def grid(space: Space) -> list[Values]:
    """Every combination, the last path varying fastest.

    Raises:
        InputError: a path's values cannot be listed.
    """
    for path, distribution in space.items():
        if distribution.values is None:
            raise InputError(f"space.{path}: a grid needs a list of values, not a range of real numbers")
    return [
        dict(zip(space, values, strict=True)) for values in itertools.product(*(d.values or () for d in space.values()))
    ]


def check_space(space: Space, base: Config, stage: StageName, origin: str) -> None:
    """Try the space's corners on the configuration.

    Raises:
        InputError: a path is unknown or changes nothing that ``stage`` computes, or a value is refused.
    """
    tree = base.model_dump(mode="json")
    for path, distribution in space.items():  # one by one first: the message then names the culprit alone
        for value in distribution.corners:
            validate(with_values(tree, {path: value}), f"{origin}: space.{path}: {value!r}")
    read: set[str] = set()
    for values in _combinations(space):
        shown = ", ".join(f"{path}={value}" for path, value in values.items())
        read |= _read(validate(with_values(tree, values), f"{origin}: space: {shown}"), stage)
    for path in space:
        section, *rest = path.split(".")
        if STAGES[stage].reads.answers and section in ("ranking", "names"):
            mend = "leave it out, and search one setting of it after another"
            raise InputError(f"{origin}: space.{path}: questions are written before the first trial; {mend}")
        named = f"{section}.{rest[0]}" if section == "stages" and rest else section
        if named not in read or path.endswith((".checkpoint_every", ".resume_from")):
            raise InputError(f"{origin}: space.{path}: changes nothing that {stage} computes; leave it out")


def _combinations(space: Space) -> Iterator[Values]:
    sizes = [len(distribution.corners) for distribution in space.values()]
    if math.prod(sizes) <= _MOST_COMBINATIONS:
        corners = itertools.product(*(distribution.corners for distribution in space.values()))
        yield from (dict(zip(space, values, strict=True)) for values in corners)
        return
    draw = random.Random(0)
    for _ in range(_MOST_COMBINATIONS):
        yield {path: draw.choice(distribution.corners) for path, distribution in space.items()}


def _read(config: Config, stage: StageName) -> set[str]:
    """Sections of the configuration that a stage or an ancestor reads; of ``stages`` each one by itself."""
    stages = config.stages
    lineage = stages.lineage(stage)
    sections = {"data", "seed", "engine", "stages", *(f"stages.{name}" for name in lineage)}
    for name in lineage:
        sections |= {part.value for part in stages.parts(name)}  # each part has a section of its name
        sections |= {"backbone"} if STAGES[name].reads.uses_backbone else set()
    sections |= {"names"} if config.encoder.initial else set()
    return sections


def data_variants(space: Space, origin: str) -> Sequence[Values]:
    """Every combination of the values that change the prepared data; one empty combination where none does.

    Raises:
        InputError: such a value is drawn from a range of real numbers, so that not all can be prepared beforehand.
    """
    paths = {path: distribution for path, distribution in space.items() if path.startswith("data.")}
    for path, distribution in paths.items():
        if distribution.values is None:
            raise InputError(f"{origin}: space.{path}: data is prepared before the first trial; give a list of values")
    return grid(paths)
