"""What a valid value is: text, ratings and times, whole columns at a time, and the line that says which one is none."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.errors import InputError

_EXACT = 2**53  # up to here float64 holds every whole number
_YEAR_2100 = 4_102_444_800  # seconds; what is later is milliseconds
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
_ZONE = r"[T ].*(Z|[+-]\d\d:?\d\d)$"  # at the end of a date with a time
_NULLS = pa.array(["", "na", "n/a", "nan", "none", "null"])  # of a number; an id may well be called "NA"


def text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trimmed text, null where blank. Whole numbers lose a ``.0``: pandas puts it on ids beside a missing one."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        if pc.all(pc.equal(column, pc.floor(column))).as_py():
            column = column.cast(pa.int64())
    trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


class Located(Protocol):
    """Anything with rows that a person can find."""

    @property
    def path(self) -> Path: ...

    def where(self, row: int) -> str: ...


@dataclass(frozen=True)
class Place:
    """Where a block of a column stands, for errors."""

    source: Located
    first: int
    column: str

    def refuse(self, wrong: pa.ChunkedArray, values: pa.ChunkedArray, problem: str) -> None:
        """Raises ``InputError`` for the first row where ``wrong`` holds; a null holds nowhere."""
        at = pc.index(wrong, True).as_py()
        if at >= 0:
            value = values[at].as_py()
            shown = int(value) if isinstance(value, float) and value.is_integer() else value
            place = f"{self.source.path}, {self.source.where(self.first + at)}"
            raise InputError(f"{place}: {self.column} {shown!r} {problem}")


def numbers(column: pa.ChunkedArray, place: Place) -> pa.ChunkedArray:
    """float64, null where missing."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if _is_text(column):
        column = _without_nulls(column)
        try:
            return column.cast(pa.float64())
        except pa.ArrowInvalid:
            place.refuse(pa.array([not _is_number(value) for value in column.to_pylist()]), column, "is not a number")
            raise
    kind = column.type
    if not any(holds(kind) for holds in _NUMBERS):
        raise InputError(f"{place.source.path}: column {place.column!r} holds {kind}, not numbers")
    if kind in (pa.int64(), pa.uint64()):
        place.refuse(_inexact(column), column, "is too large to be held exactly; give times in seconds since 1970")
    given = column.cast(pa.float64())
    return pc.if_else(pc.is_nan(given), None, given)


def _is_text(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _without_nulls(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trimmed text, null where it says so."""
    column = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(pc.utf8_lower(column), _NULLS), None, column)


def _inexact(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where whole numbers of 64 bits are none of float64's."""
    beyond = pc.greater(column, pa.scalar(_EXACT, column.type))
    return beyond if column.type == pa.uint64() else pc.or_(beyond, pc.less(column, -_EXACT))


def _is_number(value: str | None) -> bool:
    return _is(value, pa.float64())


def _is(value: str | None, kind: pa.DataType) -> bool:
    try:
        pa.scalar(value, pa.string()).cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def ratings(column: pa.ChunkedArray, place: Place, rating_range: tuple[float, float]) -> pa.ChunkedArray:
    """float64 within ``rating_range``, null where missing."""
    given, (low, high) = numbers(column, place), rating_range
    outside = pc.or_(pc.less(given, low), pc.greater(given, high))
    place.refuse(outside, given, f"lies outside data.rating_range [{low:g}, {high:g}]; mend the row or the range")
    return given


def times(column: pa.ChunkedArray, place: Place) -> pa.ChunkedArray:
    """Whole seconds since 1970 as float64, null where missing."""
    given = numbers(column, place)
    late = "is after the year 2100; times are seconds since 1970: divide milliseconds by 1000"
    place.refuse(pc.less(given, 0), given, "is before 1970; times are seconds since 1970")
    place.refuse(pc.greater(given, _YEAR_2100), given, late)
    place.refuse(pc.not_equal(given, pc.floor(given)), given, "is not a whole number of seconds; round it")
    return given


def moments(column: pa.ChunkedArray, place: Place) -> pa.ChunkedArray:
    """The same of times or dates, which may be ISO 8601 text: ``2017-12-17``, ``2017-12-17 10:00:00.250Z``.

    What names no zone is UTC; the fraction of a second goes.
    """
    if _is_text(column):
        column = _without_nulls(column)
        try:
            column.cast(pa.float64())
        except pa.ArrowInvalid:
            column = _dates(column, place)
    return times(column, place)


def _dates(column: pa.ChunkedArray, place: Place) -> pa.ChunkedArray:
    zoned = pc.fill_null(pc.match_substring_regex(column, _ZONE), False)
    try:
        local = pc.if_else(zoned, None, column).cast(pa.timestamp("us"))
        other = pc.if_else(zoned, column, None).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        kinds = (pa.timestamp("us"), pa.timestamp("us", "UTC"))
        wrong = [not any(_is(value, kind) for kind in kinds) for value in column.to_pylist()]
        place.refuse(pa.array(wrong), column, "is no time: seconds since 1970, or as in 2017-12-17 10:00:00")
        raise
    return pc.coalesce(local, other)
