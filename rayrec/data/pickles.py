"""What a pickle asks for, read without running it.

A pickle is a program, and ``pickle.load`` calls whatever the program names. An unpickler that allows only the names of
a DataFrame would still call them with arguments of the file's choosing: ``dtype.__setstate__`` turns bytes into
pointers, ``ndarray`` takes any size, the ``functools.partial`` of old pandas calls anything, and BUILD writes into
whatever was made before. So nothing is called here. ``pickletools`` splits the file into opcodes; the machine below
keeps numbers, text and lists as they are and notes the rest ("``numpy.dtype`` of ``('i8', False, True)``"). Whoever
reads the notes (``frames``) knows a few forms and takes them apart itself. A name or an opcode that no table needs is
refused where it stands.

Every byte of the file makes a bounded amount of memory: nothing is copied that the file only points at again.
"""

import mmap
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, TypeVar, cast

import numpy as np

from rayrec.data.notes import NAMES, Made, MalformedError, Name, Of, dtype_of
from rayrec.data.scan import require_file
from rayrec.errors import InputError

_T = TypeVar("_T")

LIMIT: Final = 1 << 30  # bytes of a file; its plain data takes about ten times as much while it is read


# Opcodes that put their argument on the stack. Those for 4 GB and more of text or bytes are not among them.
_NUMBERS: Final = frozenset({"NONE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_RECALLS: Final = frozenset({"BINGET", "LONG_BINGET"})
_TEXTS: Final = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BYTEARRAY8"})


class _RefusedError(ValueError):
    """The pickle asks for something that no table needs."""


def read_pickle(path: Path) -> Any:
    """What the pickle in ``path`` makes at its end, as plain data and notes of what is none; numpy's scalars are plain.

    Raises:
        InputError: the file is too large, cut short, damaged, or asks for anything that no table needs.
    """
    require_file(path)
    size = path.stat().st_size
    if size > LIMIT:
        raise InputError(f"{path}: a pickle of {size} bytes; up to {LIMIT} are read: save the table as Parquet")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            made = _Machine().run(content)
            if rest := size - content.tell():
                raise MalformedError(f"{rest} bytes follow its end")
        except _RefusedError as error:
            raise InputError(
                f"{path}: refused, and nothing of it was run: this pickle asks for {error}, which no table of numbers"
                " and text needs; get the data as CSV or Parquet, or find out who wrote this file"
            ) from None
        except (ValueError, struct.error) as error:
            raise malformed(path, error) from None
    return made


def malformed(path: Path, error: Exception) -> InputError:
    """The one line for a file that is no pickled table."""
    return InputError(f"{path}: not a whole pickle of a DataFrame ({' '.join(str(error).split())}); get it again")


class _Machine:
    """The pickle machine without its calls: a stack, marks in it, and a memo of what it has made."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._once: dict[tuple[str, int], tuple[Any, Any]] = {}  # (form, id of content) -> the content, its value

    def run(self, content: "mmap.mmap") -> Any:
        """What is left on the stack at the end."""
        stack, memo, pushed = self._stack, self._memo, _NUMBERS | _TEXTS
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], content)):
            name = opcode.name
            if name in pushed:
                stack.append(argument)
            elif name in _RECALLS:
                if argument not in memo:
                    raise MalformedError(f"it goes back to object {argument}, which is not there")
                stack.append(memo[argument])
            elif not self._keep(name, argument) and not self._gather(name):
                self._ask(name, argument)
        (made,) = self._pop(1)
        if self._stack or self._marks:
            raise MalformedError("it ends in the middle")
        return made

    def _keep(self, name: str, argument: Any) -> bool:
        """Whether ``name`` is one of the other opcodes about memo, marks and constants; if so, it is done."""
        stack, memo = self._stack, self._memo
        match name:
            case "MEMOIZE":
                memo[len(memo)] = self._top()
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = self._top()
            case "MARK":
                self._marks.append(len(stack))
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "POP":
                self._pop(1)
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                return False
        return True

    def _gather(self, name: str) -> bool:
        """The same of opcodes that make or fill tuples, lists and dictionaries."""
        stack = self._stack
        match name:
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                values = self._pop(1) if name == "APPEND" else self._since_mark()
                self._expect(list).extend(values)
            case "SETITEM" | "SETITEMS":
                pairs = self._pop(2) if name == "SETITEM" else self._since_mark()
                keys = pairs[::2]
                if len(pairs) % 2 or not all(
                    isinstance(key, str) for key in keys
                ):  # a hash may be made to take for ever
                    raise MalformedError("a key is not text")
                self._expect(dict).update(zip(keys, pairs[1::2], strict=True))
            case _:
                return False
        return True

    def _ask(self, name: str, argument: Any) -> None:
        """The opcodes that would look something up, call it or change it."""
        match name:
            case "GLOBAL":
                self._stack.append(_known(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, attribute = self._pop(2)
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise MalformedError("a name is not text")
                self._stack.append(_known(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self._pop(2)
                self._stack.append(self._made(function, arguments))
            case "BUILD":
                (state,) = self._pop(1)
                made = self._expect(Made)
                if made.state is not None:
                    raise MalformedError(f"the state of a {made.of.value} is set twice")
                made.state = state
            case "INST":
                raise _RefusedError(_shown(argument.replace(" ", ".")))
            case "PERSID" | "BINPERSID":
                raise _RefusedError("a persistent id")
            case "EXT1" | "EXT2" | "EXT4":
                raise _RefusedError(f"extension {argument}")
            case _:
                raise _RefusedError(f"the opcode {name}")

    def _made(self, function: Any, arguments: Any) -> Any:
        """A note of the call, or its result where that is a plain value."""
        if isinstance(function, Made) and function.of is Of.PARTIAL and len(function.arguments) == 1:
            function = function.arguments[0]  # of new_block, with a number of dimensions that is always 2
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise MalformedError("it calls what is no function")
        match function.of, arguments:
            case Of.SCALAR, (Made() as kind, bytes() as content):
                dtype = dtype_of(kind)
                return self._value(dtype.str, content, lambda: _scalar(dtype, content))
            case Of.ENCODE, (str() as text, "latin1"):
                return self._value("latin1", text, lambda: text.encode("latin1"))
            case Of.BYTES, ():
                return b""
            case Of.BYTES, (bytes() as content,):
                return content
        return Made(function.of, arguments)

    def _value(self, form: str, content: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` makes of an object, once: a few bytes may ask for it again and again."""
        key = form, id(content)
        if key not in self._once:
            self._once[key] = content, make()
        return self._once[key][1]

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise MalformedError("it takes more than it has made")
        return self._stack[-1]

    def _expect(self, kind: type[_T]) -> _T:
        top = self._top()
        if not isinstance(top, kind):
            raise MalformedError(f"a {kind.__name__} is missing")
        return top

    def _pop(self, count: int) -> list[Any]:
        at = len(self._stack) - count
        if at < (self._marks[-1] if self._marks else 0):
            raise MalformedError("it takes more than it has made")
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise MalformedError("a mark is missing")
        at = self._marks.pop()
        values = self._stack[at:]
        del self._stack[at:]
        return values


def _scalar(dtype: np.dtype[Any], content: bytes) -> Any:
    if dtype.hasobject or len(content) != dtype.itemsize:
        raise MalformedError("a number is cut short")
    return np.frombuffer(content, dtype)[0].item() if content else ""


def _known(name: str) -> Name:
    if name not in NAMES:
        raise _RefusedError(_shown(name))
    return Name(NAMES[name])


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}...")
