"""A pickled pandas DataFrame as columns of plain values, taken apart without pandas.

Columns of numbers, text, or lists of these, as pandas 0.25 to 3 pickles them. The row index is not read.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayrec.data.notes import Made, MalformedError, Name, Of, dtype_of
from rayrec.data.pickles import malformed, read_pickle
from rayrec.errors import InputError

Column = NDArray[Any]  # of numbers or, as objects, of whatever plain data the pickle holds


def read_frame(path: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Column]:
    """The ``wanted`` columns and those of the ``optional`` ones that are there, (rows,) each.

    In columns of objects numpy's scalars have become Python's; missing text is ``None`` or NaN, as it was.

    Raises:
        InputError: no whole pickle of a DataFrame, one that asks for more, or a column missing or of another type.
    """
    made = read_pickle(path)
    try:
        names, blocks = _parts(made)
        if missing := [name for name in wanted if name not in names]:
            found = ", ".join(name[:40] for name in names[:20])
            raise InputError(f"{path}: no column {missing[0]!r}; found: {found}; check data.split_files")
        return _columns(names, blocks, {*wanted, *optional})
    except InputError:
        raise
    except (ValueError, OverflowError) as error:  # of Arrow, too
        raise malformed(path, error) from None


def _parts(frame: Any) -> tuple[list[str], list[tuple[Any, Any]]]:
    """Names of the columns; values and place of each block."""
    match frame:
        case Made(of=Of.FRAME, state={"_mgr": manager} | {"_data": manager}):
            pass
        case _:
            raise MalformedError("it holds something else")
    match manager:
        case Made(of=Of.MANAGER, arguments=(tuple() as blocks, [axis, _])):
            return _names(axis), [_block(block) for block in blocks]
        case Made(of=Of.MANAGER, state=(_, _, _, {"0.14.1": {"axes": [axis, _], "blocks": list() as blocks}})):
            return _names(axis), [_block(block) for block in blocks]  # pandas up to 1.2
    raise MalformedError("its blocks are missing")


def _columns(names: list[str], blocks: list[tuple[Any, Any]], wanted: set[str]) -> dict[str, Column]:
    found: dict[str, Column] = {}
    left = len(names)
    for values, place in blocks:
        at = _positions(place, len(names))
        left -= len(at)
        if left < 0:  # before anything is done for each of them
            raise MalformedError("its blocks overlap")
        here = [(row, names[i]) for row, i in enumerate(at) if names[i] in wanted]
        array = _values(values) if here else np.empty((0, 0))
        for row, name in here:
            if name in found or array.ndim != 2 or len(array) != len(at):
                raise MalformedError(f"column {name!r} is there twice or has no rows of its own")
            found[name] = array[row]
    if len(found) < len(wanted.intersection(names)) or len({len(column) for column in found.values()}) > 1:
        raise MalformedError("its columns differ in length")
    return found


def _block(block: Any) -> tuple[Any, Any]:
    match block:
        case Made(of=Of.BLOCK, arguments=(values, place, *_)) | {"values": values, "mgr_locs": place}:
            return values, place
    raise MalformedError("it has another block")


def _names(axis: Any) -> list[str]:
    match axis:
        case Made(of=Of.INDEX, arguments=(Name(of=Of.LABELS), {"data": data})):
            names: list[Any] = _values(data).reshape(-1).tolist()
            if all(isinstance(name, str) for name in names):
                return names
    raise MalformedError("its columns have no names")


def _positions(place: Any, columns: int) -> Sequence[int]:
    """Columns of the frame that a block's rows are."""
    match place:
        case Made(of=Of.SLICE, arguments=(int() | None as start, int() | None as stop, int() | None as step)):
            return range(columns)[slice(start, stop, step)]
        case Made():
            at: list[Any] = _values(place).reshape(-1).tolist()
            if all(isinstance(i, int) and 0 <= i < columns for i in at):
                return at
    raise MalformedError("a block has no place")


def _values(made: Any) -> Column:
    """(columns, rows), or (length,) of an index."""
    match made:
        case Made(of=Of.ARRAY, arguments=(Name(of=Of.NDARRAY), *_), state=(_, shape, kind, bool() as fortran, content)):
            return _array(content, kind, shape, "F" if fortran else "C")
        case Made(of=Of.BUFFER, arguments=(content, kind, shape, "C" | "F" as order)):
            return _array(content, kind, shape, order)
        case Made(of=Of.TEXT, state={"_pa_array": Made(of=Of.ARROW_ARRAY, arguments=(parts,))}):
            return _text(parts)
    raise MalformedError("a column is of a type that is not read here: save it as numbers or text")


def _array(content: Any, kind: Any, shape: Any, order: Any) -> Column:
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise MalformedError("an array has no shape")
    dtype, size = dtype_of(kind), math.prod(shape)
    if dtype.hasobject:
        if not isinstance(content, list) or len(content) != size:
            raise MalformedError("an array is cut short")
        flat = np.fromiter(content, dtype, size)  # not np.array, which looks into lists
    else:
        if not isinstance(content, bytes | bytearray) or len(content) != size * dtype.itemsize:
            raise MalformedError("an array is cut short")
        flat = np.frombuffer(content, dtype) if size else np.empty(0, dtype)
        flat = flat.astype(dtype.newbyteorder("="), copy=False)
    return flat.reshape(shape, order=order)


def _text(parts: Any) -> Column:
    """(1, rows) of an Arrow array's parts."""
    match parts:
        case (
            Made(of=Of.ARROW_TYPE, arguments=("large_string" | "string" as kind,)),
            int() as length,
            int(),
            int() as offset,
            [validity, offsets, content],
            *_,
        ) if length >= 0 and offset >= 0:
            buffers = [_buffer(buffer) for buffer in (validity, offsets, content)]
            array = pa.Array.from_buffers(pa.type_for_alias(kind), length, buffers, offset=offset)
            array.validate(full=True)  # sizes, offsets and encoding: nothing outside the buffers is read
            column: Column = array.to_numpy(zero_copy_only=False).reshape(1, -1)
            return column
    raise MalformedError("a column of text is of another form")


def _buffer(made: Any) -> pa.Buffer | None:
    match made:
        case None:
            return None
        case Made(of=Of.ARROW_BUFFER, arguments=(bytes() | bytearray() as content,)):
            return pa.py_buffer(content)
    raise MalformedError("a column of text is of another form")
