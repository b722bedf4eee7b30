"""What a pickle of a table may ask for, by name, and the notes that are taken of it instead of doing it."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np


class Of(Enum):
    """What tables are pickled as."""

    FRAME = "DataFrame"
    MANAGER = "BlockManager"
    BLOCK = "block"
    INDEX = "_new_Index"
    LABELS = "Index"
    ARRAY = "_reconstruct"
    BUFFER = "_frombuffer"
    NDARRAY = "ndarray"
    DTYPE = "dtype"
    SCALAR = "scalar"
    TEXT = "ArrowStringArray"
    TEXT_TYPE = "StringDtype"
    ARROW_ARRAY = "_restore_array"
    ARROW_BUFFER = "py_buffer"
    ARROW_TYPE = "type_for_alias"
    SLICE = "slice"
    PARTIAL = "partial"
    ENCODE = "encode"
    BYTES = "bytearray"


NAMES: Final = {  # as pandas 0.25 to 3 and numpy 1 and 2 write them
    "numpy.dtype": Of.DTYPE,
    "numpy.ndarray": Of.NDARRAY,
    "numpy.core.multiarray._reconstruct": Of.ARRAY,
    "numpy._core.multiarray._reconstruct": Of.ARRAY,
    "numpy.core.numeric._frombuffer": Of.BUFFER,
    "numpy._core.numeric._frombuffer": Of.BUFFER,
    "numpy.core.multiarray.scalar": Of.SCALAR,
    "numpy._core.multiarray.scalar": Of.SCALAR,
    "pandas.DataFrame": Of.FRAME,
    "pandas.core.frame.DataFrame": Of.FRAME,
    "pandas.core.internals.managers.BlockManager": Of.MANAGER,
    "pandas.core.internals.blocks.new_block": Of.BLOCK,
    "pandas._libs.internals._unpickle_block": Of.BLOCK,
    "pandas.core.indexes.base._new_Index": Of.INDEX,
    "pandas.Index": Of.LABELS,
    "pandas.RangeIndex": Of.LABELS,
    "pandas.core.indexes.base.Index": Of.LABELS,
    "pandas.core.indexes.range.RangeIndex": Of.LABELS,
    "pandas.core.indexes.numeric.Int64Index": Of.LABELS,
    "pandas.StringDtype": Of.TEXT_TYPE,
    "pandas.core.arrays.string_.StringDtype": Of.TEXT_TYPE,
    "pandas.arrays.ArrowStringArray": Of.TEXT,
    "pandas.core.arrays.string_arrow.ArrowStringArray": Of.TEXT,
    "pandas.core.arrays.string_arrow.ArrowStringArrayNumpySemantics": Of.TEXT,
    "pyarrow.lib._restore_array": Of.ARROW_ARRAY,
    "pyarrow.lib.py_buffer": Of.ARROW_BUFFER,
    "pyarrow.lib.type_for_alias": Of.ARROW_TYPE,
    "functools.partial": Of.PARTIAL,
    "builtins.slice": Of.SLICE,
    "__builtin__.slice": Of.SLICE,
    "builtins.bytearray": Of.BYTES,
    "__builtin__.bytearray": Of.BYTES,
    "__builtin__.bytes": Of.BYTES,
    "_codecs.encode": Of.ENCODE,
}


@dataclass(frozen=True)
class Name:
    """A function or a class that a pickle names, as one of those above."""

    of: Of


@dataclass(eq=False, repr=False)
class Made:
    """What a pickle would have made: a call of ``of``, and the state that would have been put into its result."""

    of: Of
    arguments: tuple[Any, ...]
    state: Any = None


class MalformedError(ValueError):
    """Not what a table is pickled as."""


_TYPES: Final = re.compile(r"b1|[iu][1248]|f[248]|O[48]|U\d{1,6}")


def dtype_of(note: Any) -> np.dtype[Any]:
    """numpy's type that is noted; of booleans, whole and floating numbers, text or objects.

    Raises:
        MalformedError: any other.
    """
    match note:
        case Made(
            of=Of.DTYPE, arguments=(str() as code, *_), state=(_, "<" | ">" | "|" as order, None, None, None, *_)
        ):
            if _TYPES.fullmatch(code):
                return np.dtype(object) if code[0] == "O" else np.dtype(f"{order}{code}")
    raise MalformedError("a column is of a type that is not read here: save it as numbers or text")
