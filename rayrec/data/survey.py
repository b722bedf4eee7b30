"""First pass over the raw rows: which stay, why the others go, and who appears when. No ray: functions of tables.

What a block tells is a table of sightings; folded over all blocks it has at most a few rows for each user and item.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.columns import (
    CUT_SHORT,
    HISTORY,
    ITEM_ID,
    RATING,
    ROW,
    SOURCE_ID,
    TIMESTAMP,
    TITLE,
    USER_ID,
)
from rayrec.errors import InputError

# A row's fate: the first step that drops it. 0 stays.
STEPS: Final = (
    "read",
    "drop rows cut short",
    "drop missing values",
    "drop unknown items",
    "keep the first users and items",
)
_KEPT, _CUT, _MISSING, _UNKNOWN, _LATE = range(5)

_KIND, _FATE, _FIRST, _ROWS = "kind", "fate", "first", "rows"
_FOLD_ROWS = 1_000_000  # sightings gathered before they are folded, at least


@dataclass(frozen=True)
class Rule:
    """Which rows stay: nothing is missing, the item is ``known`` and user and item are among those wanted, if told."""

    known: pa.Array  # source ids of the items table
    users: pa.Array | None = None
    items: pa.Array | None = None


def sightings(block: pa.Table, rule: Rule) -> pa.Table:
    """For every user and every item of a raw block and each fate: the first ROW and the number of rows.

    Items of the histories that stay are seen, too, in no rows of their own.
    """
    cut = block[CUT_SHORT] if CUT_SHORT in block.column_names else pa.repeat(False, len(block))
    missing = pa.repeat(False, len(block))
    for name in (USER_ID, ITEM_ID, RATING, TIMESTAMP):
        missing = pc.or_(missing, pc.is_null(block[name]))
    late = pa.repeat(False, len(block))
    for name, wanted in ((USER_ID, rule.users), (ITEM_ID, rule.items)):
        if wanted is not None:
            late = pc.or_(late, pc.invert(pc.is_in(block[name], wanted)))
    unknown = pc.invert(pc.is_in(block[ITEM_ID], rule.known))
    reasons = pc.make_struct(cut, missing, unknown, late)
    fate = pc.case_when(reasons, *(pa.scalar(code, pa.int8()) for code in (_CUT, _MISSING, _UNKNOWN, _LATE, _KEPT)))
    tables = []
    for kind, name in enumerate((USER_ID, ITEM_ID)):
        rows = pa.table({SOURCE_ID: block[name], _FATE: fate, _FIRST: block[ROW]})
        seen = rows.group_by([SOURCE_ID, _FATE]).aggregate([(_FIRST, "min"), (_FIRST, "count")])
        seen = seen.rename_columns([SOURCE_ID, _FATE, _FIRST, _ROWS])
        tables.append(seen.add_column(0, _KIND, pa.repeat(pa.scalar(kind, pa.int8()), len(seen))))
    if HISTORY in block.column_names:
        tables.append(_in_histories(block.filter(pc.equal(fate, _KEPT))).select(tables[-1].schema.names))
    return pa.concat_tables(tables)


def _in_histories(block: pa.Table) -> pa.Table:
    """Sightings of the items that histories hold."""
    rows = pa.table(
        {SOURCE_ID: pc.list_flatten(block[HISTORY]), _FIRST: block[ROW].take(pc.list_parent_indices(block[HISTORY]))}
    )
    seen = rows.group_by([SOURCE_ID]).aggregate([(_FIRST, "min")]).rename_columns([SOURCE_ID, _FIRST])
    for name, value in ((_KIND, pa.scalar(1, pa.int8())), (_FATE, pa.scalar(_KEPT, pa.int8())), (_ROWS, pa.scalar(0))):
        seen = seen.append_column(name, pa.repeat(value, len(seen)))
    return seen


class Survey:
    """The sightings of all blocks, in any order. Memory: O(users + items)."""

    def __init__(self, blocks: Iterable[pa.Table], *, reduced: bool) -> None:
        keys, values = [_KIND, SOURCE_ID, _FATE], [(_FIRST, "min"), (_ROWS, "sum")]
        self._seen = fold(
            blocks, lambda table: table.group_by(keys).aggregate(values).rename_columns([*keys, _FIRST, _ROWS])
        )
        self._steps = dict(enumerate(STEPS if reduced else STEPS[:-1]))
        if not pc.any(pc.equal(self._seen[_FATE], _CUT)).as_py():
            del self._steps[_CUT]  # few files can be

    @cached_property
    def users(self) -> pa.Array:
        """Source ids of the users that stay, by first appearance."""
        return self._ids(0)

    @cached_property
    def items(self) -> pa.Array:
        """Source ids of the items that stay, by first appearance."""
        return self._ids(1)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Rows, users and items after each step, and the rows it dropped."""
        fates = self._seen[_FATE]
        steps: list[dict[str, Any]] = []
        for code, name in self._steps.items():
            left = self._seen.filter(pc.or_(pc.equal(fates, _KEPT), pc.greater(fates, code)))
            users, items = (left.filter(pc.equal(left[_KIND], kind)) for kind in (0, 1))
            counts: dict[str, Any] = {
                "rows": pc.sum(users[_ROWS]).as_py() or 0,
                "users": pc.count_distinct(users[SOURCE_ID]).as_py(),
                "items": pc.count_distinct(items[SOURCE_ID]).as_py(),
            }
            dropped = {"dropped": steps[-1]["rows"] - counts["rows"]} if steps else {}
            steps.append({"step": name, **counts, **dropped})
        return steps

    def _ids(self, kind: int) -> pa.Array:
        kept = pc.and_(pc.equal(self._seen[_KIND], kind), pc.equal(self._seen[_FATE], _KEPT))
        order = [
            (_FIRST, "ascending"),
            (SOURCE_ID, "ascending"),
        ]  # a row shows several items at once if it has a history
        return self._seen.filter(kept).sort_by(order)[SOURCE_ID].combine_chunks()


def check_left(dataset: str, steps: Sequence[dict[str, Any]]) -> None:
    """Raises ``InputError`` where the last of the ``steps`` left nothing."""
    if not steps[-1]["rows"]:
        drops = ", ".join(f"{step['step']}: {step['dropped']}" for step in steps[1:])
        raise InputError(f"dataset {dataset}: none of {steps[0]['rows']} rows is left ({drops}); check data.sources")


def fold_titles(blocks: Iterable[pa.Table]) -> pa.Table:
    """RAW_ITEM_SCHEMA blocks as one row an item, in order of appearance: its first title that is not blank.

    Whatever would break a line (line ends, tabs, other control characters) becomes one space. A title may stay null.
    """

    def clean(block: pa.Table) -> pa.Table:
        titles = pc.replace_substring_regex(block[TITLE], r"[\p{Cc}\x{2028}\x{2029}]+", " ")
        titles = pc.utf8_trim_whitespace(titles)
        return pa.table({ITEM_ID: block[ITEM_ID], TITLE: pc.if_else(pc.equal(titles, ""), None, titles)})

    def first(table: pa.Table) -> pa.Table:
        grouped = table.group_by([ITEM_ID], use_threads=False).aggregate([(TITLE, "first")])  # nulls do not count
        return grouped.rename_columns([ITEM_ID, TITLE])

    titles = fold((clean(block) for block in blocks), first)
    return titles.filter(pc.is_valid(titles[ITEM_ID]))


def fold(blocks: Iterable[pa.Table], merge: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """``merge`` of all blocks, which must be associative: done whenever they have doubled, so in linear time."""
    pending: list[pa.Table] = []
    rows, limit = 0, _FOLD_ROWS
    for block in blocks:
        pending.append(block)
        rows += len(block)
        if rows > limit:
            pending = [merge(pa.concat_tables(pending))]
            rows = len(pending[0])
            limit = max(limit, 2 * rows)
    return merge(pa.concat_tables(pending))
