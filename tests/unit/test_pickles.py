"""Pickled DataFrames: what pandas reads is read, and nothing that a pickle asks for is ever done."""

import copyreg
import functools
import os
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from old_frames import COLUMNS, VERSIONS, pickled

from rayrec.data import pickles
from rayrec.data.frames import read_frame
from rayrec.errors import InputError

PROTOCOLS = (2, 3, 4, 5)
rng = np.random.default_rng(0)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "t.pkl"
    path.write_bytes(content)
    return path


def wide() -> pd.DataFrame:
    """Every kind of column, blocks of several and of one, lists beyond a pickler's batches, text beyond 255 bytes."""
    rows = 1100
    frame = pd.DataFrame(
        {
            "uid": rng.integers(-5, 2**40, rows),
            "x": rng.normal(size=rows),
            "iid": rng.integers(0, 9, rows),
            "small": rng.integers(0, 9, rows).astype(np.uint8),
            "half": rng.normal(size=rows).astype(np.float32),
            "ok": rng.random(rows) < 0.5,
            "his": [[0, *map(np.int64, range(i % 7))] for i in range(rows)],
            "names": [[np.str_(f"n{j}") for j in range(i % 3)] for i in range(rows)],
            "title": [f"Füm {i} " * (1 + 40 * (i == 3)) for i in range(rows)],
        }
    )
    frame["mixed"] = pd.Series(["a", None] * (rows // 2), dtype=object)
    frame.loc[5, "x"] = np.nan
    return frame


FRAMES: dict[str, Callable[[], pd.DataFrame]] = {
    "wide": wide,
    "shuffled": lambda: wide().sample(frac=0.5, random_state=1),
    "columns in another order": lambda: wide()[["title", "half", "iid", "his", "uid"]],
    "transposed memory": lambda: pd.DataFrame(np.asfortranarray(rng.normal(size=(40, 3))), columns=list("abc")),
    "objects in transposed memory": lambda: pd.DataFrame(
        np.asfortranarray(np.array([["a", [1]], ["b", [2]]], object)), columns=["a", "b"], dtype=object
    ),
    "text with gaps": lambda: pd.DataFrame({"t": ["a", None, "é"]}),
    "text that is a slice": lambda: pd.DataFrame({"t": ["a", None, "é", "long"] * 9})[3:9],
    "big-endian": lambda: pd.DataFrame({"a": np.array([1, 2], ">i4"), "b": np.array([1.5, 2], ">f8")}),
    "one row": lambda: wide()[:1],
    "no rows": lambda: wide()[:0],
    "block by block": lambda: pd.concat([wide()[["uid"]], wide()[["iid"]]], axis=1),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", FRAMES)
def test_a_frame_is_what_pandas_reads(case: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "t.pkl"
    FRAMES[case]().to_pickle(path, protocol=protocol)
    expected = pd.read_pickle(path).reset_index(drop=True)
    found = read_frame(path, list(expected))
    assert set(found) == set(expected)
    for name, column in found.items():
        wanted = expected[name]
        assert not isinstance(wanted.dtype, np.dtype) or column.dtype == wanted.dtype.newbyteorder("=")
        pd.testing.assert_series_equal(pd.Series(column, dtype=wanted.dtype, name=name), wanted)


@pytest.mark.parametrize("version", VERSIONS)
def test_older_pandas(version: tuple[str, int], tmp_path: Path) -> None:
    found = read_frame(written(tmp_path, pickled(version)), list(COLUMNS))
    pd.testing.assert_frame_equal(pd.DataFrame(found)[list(COLUMNS)], pd.DataFrame(COLUMNS).astype({"iid": "int32"}))


def test_only_the_columns_that_are_wanted_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.pkl"
    pd.DataFrame({"a": [1], "wave": [1j]}).to_pickle(path)
    assert read_frame(path, ["a"], ["b"]).keys() == {"a"}
    with pytest.raises(InputError, match="a type that is not read here"):
        read_frame(path, ["wave"])
    with pytest.raises(InputError, match="no column 'b'; found: a, wave"):
        read_frame(path, ["a", "b"])


# What is refused


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def asks(module: str, name: str) -> bytes:
    """Protocol 4: the object of that name."""
    return b"\x80\x04" + short(module) + short(name) + b"\x93"


class Calling:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def harmful(folder: Path) -> Calling:
    """Leaves a file behind if it is ever called."""
    return Calling(os.system, f"touch {folder}/harm")


SYSTEM = f"'{os.system.__module__}.system'"
NUMBERS = pickle.dumps(pd.DataFrame({"a": [1, 2]}), 4)
REFUSED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a call": (lambda p: pickle.dumps(harmful(p)), SYSTEM),
    "a call, protocol 0": (lambda p: pickle.dumps(harmful(p), 0), SYSTEM),
    "a call, protocol 2": (lambda p: pickle.dumps(harmful(p), 2), SYSTEM),
    "a call within a column": (lambda p: pickle.dumps(pd.DataFrame({"a": [harmful(p), 1]})), SYSTEM),
    "a call within a list": (lambda p: pickle.dumps(pd.DataFrame({"a": [[harmful(p)], [1]]})), SYSTEM),
    "a call in the state": (lambda p: pickle.dumps(attributed(harmful(p))), SYSTEM),
    "a call in the index": (
        lambda p: pickle.dumps(pd.DataFrame({"a": [1, 2]}, index=pd.Index([harmful(p), 1], dtype=object))),
        SYSTEM,
    ),
    "a bound call": (lambda p: pickle.dumps(functools.partial(os.system, f"touch {p}/harm")), SYSTEM),
    "eval": (lambda p: pickle.dumps(Calling(eval, "1")), "'builtins.eval'"),
    "getattr": (lambda p: pickle.dumps(Calling(getattr, 1, "real")), "'builtins.getattr'"),
    "a pickle within": (lambda p: pickle.dumps(Calling(pickle.loads, pickle.dumps(harmful(p)))), "'_pickle.loads'"),
    "pandas' own reader": (lambda p: pickle.dumps(Calling(pd.read_pickle, "x")), "'pandas.read_pickle'"),
    "pandas' own eval": (lambda p: pickle.dumps(Calling(pd.eval, "1")), "'pandas.eval'"),
    "numpy's own reader": (lambda p: pickle.dumps(Calling(np.load, "x")), "'numpy.load'"),
    "an instance": (lambda p: b"(iposix\nsystem\n.", "'posix.system'"),
    "an object": (lambda p: f"(cposix\nsystem\nS'touch {p}/harm'\no.".encode(), "'posix.system'"),
    "a dotted name": (lambda p: asks("pandas", "core.frame.sys.modules") + b".", "'pandas.core.frame.sys.modules'"),
    "a method of an allowed class": (
        lambda p: asks("numpy", "dtype.__setstate__") + b".",
        "'numpy.dtype.__setstate__'",
    ),
    "a name in a module that is not imported": (lambda p: asks("antigravity", "fly") + b".", "'antigravity.fly'"),
    "another type of a column": (
        lambda p: pickle.dumps(pd.DataFrame({"a": pd.Categorical(["x"])})),
        "'pandas._libs.arrays.__pyx_unpickle_NDArrayBacked'",
    ),
    "a persistent id": (lambda p: b"\x80\x04K\x01Q.", "a persistent id"),
    "a persistent id of protocol 0": (lambda p: b"Pevil\n.", "a persistent id"),
    "an extension": (lambda p: b"\x80\x02\x82\xf0.", "extension 240"),
    "a set": (lambda p: pickle.dumps({1}), "the opcode EMPTY_SET"),
    "keyword arguments": (lambda p: b"\x80\x04" + short("x") + b")}\x92.", "the opcode NEWOBJ_EX"),
    "a buffer from elsewhere": (lambda p: b"\x80\x05\x97.", "the opcode NEXT_BUFFER"),
    "a copy": (lambda p: b"\x80\x04]2.", "the opcode DUP"),
}


def attributed(value: Any) -> pd.DataFrame:
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["note"] = value
    return frame


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_table_needs_is_refused_by_name(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, name = REFUSED[case]
    monkeypatch.setattr(copyreg, "_inverted_registry", {240: ("posix", "system")})
    monkeypatch.setattr(copyreg, "_extension_cache", {240: os.system})
    path = written(tmp_path, make(tmp_path))
    with pytest.raises(InputError) as caught:
        read_frame(path, ["a"])
    message = str(caught.value)
    assert message.startswith(f"{path}: refused, and nothing of it was run: this pickle asks for {name}, which")
    assert len(message.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["t.pkl"]  # no harm done
    assert "antigravity" not in sys.modules


def test_the_harm_would_be_seen(tmp_path: Path) -> None:
    """The tests above could fail."""
    pickle.loads(REFUSED["a call"][0](tmp_path))
    assert (tmp_path / "harm").exists()


def test_a_long_name_is_shortened(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_frame(written(tmp_path, b"\x80\x02cos\n" + b"a" * 10**6 + b"\n."), ["a"])
    assert len(str(caught.value)) < 500


# What is no table, though it asks for nothing else

ARRAY = asks("numpy._core.multiarray", "_reconstruct") + asks("numpy", "ndarray")[2:] + b"K\x00\x85C\x01b\x87R"


def dtype(code: str, order: str = "<", fields: bytes = b"NNN") -> bytes:
    sizes = b"J\xff\xff\xff\xff" * 2 + (b"K?" if code[0] == "O" else b"K\x00")  # 63: numpy's flags of objects
    return asks("numpy", "dtype")[2:] + short(code) + b"\x89\x88\x87R(K\x03" + short(order) + fields + sizes + b"tb"


def frame_of(values: bytes, place: bytes = b"", times: int = 1) -> bytes:
    """A frame of the one column ``a`` with these values, in the layout of today's pandas."""
    place = place or asks("builtins", "slice")[2:] + b"K\x00K\x01K\x01\x87R"
    block = asks("pandas._libs.internals", "_unpickle_block")[2:] + values + place + b"K\x02\x87R"
    names = ARRAY[2:] + b"(K\x01K\x01\x85" + dtype("O8", "|") + b"\x89]" + short("a") + b"atb"
    index = asks("pandas.core.indexes.base", "_new_Index")[2:]
    axes = b"](" + index + asks("pandas", "Index")[2:] + b"}" + short("data") + names + b"s\x86R"
    axes += index + asks("pandas", "RangeIndex")[2:] + b"}(" + short("start") + b"K\x00" + short("stop") + b"K\x02"
    axes += short("step") + b"K\x01" + short("name") + b"Nu\x86Re"
    manager = asks("pandas.core.internals.managers", "BlockManager")[2:] + b"(" + times * block + b"t"
    state = b"}(" + short("_typ") + short("dataframe") + short("_mgr") + manager + axes + b"\x86Ru"
    return asks("pandas", "DataFrame") + b")\x81" + state + b"b."


def array(shape: bytes, kind: bytes, content: bytes) -> bytes:
    return ARRAY[2:] + b"(K\x01" + shape + kind + b"\x89" + content + b"tb"


TWO = b"C\x10" + struct.pack("<qq", 5, 6)
SHAPE = b"K\x01K\x02\x86"  # (1, 2)


def text(length: int, offsets: bytes, content: bytes, validity: bytes = b"N", offset: bytes = b"K\x00") -> bytes:
    """An Arrow array as pandas 3 pickles it."""

    def buffer(data: bytes) -> bytes:
        return asks("pyarrow.lib", "py_buffer")[2:] + b"C" + bytes([len(data)]) + data + b"\x85R"

    kind = asks("pyarrow.lib", "type_for_alias")[2:] + short("large_string") + b"\x85R"
    parts = kind + b"J" + struct.pack("<i", length) + b"K\x00" + offset
    parts = b"(" + parts + b"](" + validity + buffer(offsets) + buffer(content) + b"e]Nt\x85R"
    form = asks("pandas", "StringDtype")[2:] + short("pyarrow") + b"G" + struct.pack(">d", np.nan) + b"\x86R"
    state = (
        b"}(" + short("_pa_array") + asks("pyarrow.lib", "_restore_array")[2:] + parts + short("_dtype") + form + b"u"
    )
    return asks("pandas.arrays", "ArrowStringArray")[2:] + b")\x81" + state + b"b"


def test_the_frames_made_by_hand_are_read(tmp_path: Path) -> None:
    """And pandas agrees that they are frames: what follows fails for its one flaw alone."""
    for content, values in (
        (array(SHAPE, dtype("i8"), TWO), [5, 6]),
        (array(SHAPE, dtype("O8", "|"), b"](K\x05]K\x06ae"), [5, [6]]),
        (text(2, struct.pack("<qqq", 0, 1, 3), b"A\xc3\xa9"), ["A", "é"]),
    ):
        path = written(tmp_path, frame_of(content))
        assert read_frame(path, ["a"])["a"].tolist() == values == pd.read_pickle(path)["a"].tolist()


BAD_TYPE = "a type that is not read here"
MALFORMED: dict[str, tuple[bytes, str]] = {
    "text": (b"uid,iid\n1,2\n", ""),
    "a number": (pickle.dumps(5), "it holds something else"),
    "a dictionary": (pickle.dumps({"_mgr": 1}), "it holds something else"),
    "a frame without state": (asks("pandas", "DataFrame") + b")\x81.", "it holds something else"),
    "a class": (asks("pandas", "DataFrame") + b".", "it holds something else"),
    "another pickle behind it": (NUMBERS + NUMBERS, f"{len(NUMBERS)} bytes follow its end"),
    "pointers from bytes": (frame_of(array(SHAPE, dtype("O8", "|"), TWO)), "an array is cut short"),
    "a list as numbers": (frame_of(array(SHAPE, dtype("i8"), b"](K\x05K\x06e")), "an array is cut short"),
    "too few bytes": (frame_of(array(b"K\x01K\x03\x86", dtype("i8"), TWO)), "an array is cut short"),
    "a vast shape": (frame_of(array(b"K\x01\x8a\x08" + b"\xff" * 7 + b"\x7f\x86", dtype("i8"), TWO)), "cut short"),
    "a negative shape": (frame_of(array(b"K\x01J\xfe\xff\xff\xff\x86", dtype("i8"), TWO)), "an array has no shape"),
    "one dimension": (frame_of(array(b"K\x02\x85", dtype("i8"), TWO)), "there twice or has no rows of its own"),
    "three dimensions": (frame_of(array(b"K\x01K\x02K\x01\x87", dtype("i8"), TWO)), "has no rows of its own"),
    "a type with fields": (
        frame_of(array(SHAPE, dtype("V8", "|", b"N" + short("x") + b"\x85}"), TWO)),
        BAD_TYPE,
    ),
    "a type of any size": (frame_of(array(SHAPE, dtype("U99999999"), TWO)), BAD_TYPE),
    "objects with fields": (frame_of(array(SHAPE, dtype("O8", "|", b"N)}"), TWO)), BAD_TYPE),
    "a state set twice": (frame_of(array(SHAPE, dtype("i8") + b"Nb", TWO)), ""),
    "no place": (frame_of(array(SHAPE, dtype("i8"), TWO), b"N"), "a block has no place"),
    "a place beyond": (
        frame_of(array(SHAPE, dtype("i8"), TWO), array(b"K\x01\x85", dtype("i8"), b"C\x08" + struct.pack("<q", 7))),
        "a block has no place",
    ),
    "a block again": (frame_of(array(SHAPE, dtype("i8"), TWO), times=2), "its blocks overlap"),
    "text offsets beyond the text": (frame_of(text(2, struct.pack("<qqq", 0, 1, 999), b"ab")), ""),
    "text offsets that go back": (frame_of(text(2, struct.pack("<qqq", 0, 2, 1), b"ab")), ""),
    "too few text offsets": (frame_of(text(2000, struct.pack("<qqq", 0, 1, 2), b"ab")), ""),
    "text that starts beyond": (
        frame_of(text(2, struct.pack("<qqq", 0, 1, 2), b"ab", offset=b"J\xff\xff\xff\x7f")),
        "",
    ),
    "text of a negative length": (frame_of(text(-2, struct.pack("<qqq", 0, 1, 2), b"ab")), "another form"),
    "text that is none": (frame_of(text(2, struct.pack("<qqq", 0, 1, 2), b"\xff\xfe")), ""),
    "a memo that is empty": (b"\x80\x04h\x07.", "it goes back to object 7, which is not there"),
    "an empty stack": (b"\x80\x040.", "it takes more than it has made"),
    "beyond a mark": (b"\x80\x04K\x01(\x85.", "it takes more than it has made"),
    "no mark": (b"\x80\x04t.", "a mark is missing"),
    "an open mark": (b"\x80\x04(K\x01.", "it ends in the middle"),
    "more than one": (b"\x80\x04K\x01K\x01.", "it ends in the middle"),
    "a call of a number": (b"\x80\x04K\x01)R.", "it calls what is no function"),
    "a call without arguments": (asks("numpy", "dtype") + b"NR.", "it calls what is no function"),
    "the state of a list": (b"\x80\x04]Nb.", "a Made is missing"),
    "items for a number": (b"\x80\x04K\x01K\x01a.", "a list is missing"),
    "a key that is no text": (b"\x80\x04}K\x01\x85K\x02s.", "a key is not text"),
    "a name that is a list": (b"\x80\x04]]\x93.", "a name is not text"),
    "bytes that are not there": (b"\x80\x04B\xff\xff\xff\x7fab.", ""),
    "a byte array that is not there": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x0fab.", ""),
    "an unknown opcode": (b"\x80\x04\xff.", ""),
    "an index that is vast": (b"\x80\x04]r\xff\xff\xff\xff0h\x01.", "it goes back to object 1"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_table_is_one_line(case: str, tmp_path: Path) -> None:
    content, problem = MALFORMED[case]
    path = written(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_frame(path, ["a"])
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and problem in message
    assert "refused" not in message and len(message) < 400
    assert len(message.splitlines()) == 1


def test_a_pickle_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(pd.DataFrame({"a": [1, 2], "t": ["x", "y"]}))
    for length in range(1, len(whole)):
        with pytest.raises(InputError):
            read_frame(written(tmp_path, whole[:length]), ["a"])


AGAIN = 2000


@pytest.mark.parametrize(
    ("big", "ask"),
    [
        (b"X\x00\x00\x10\x00" + b"a" * 2**20, b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"),
        (
            b"B\x00\x00\x10\x00" + b"a\0\0\0" * 2**18,
            asks("numpy._core.multiarray", "scalar")[2:] + dtype("U262144") + b"h\x00\x86R",
        ),
        (b"B\x00\x00\x10\x00" + b"a" * 2**20, b"cbuiltins\nbytearray\nh\x00\x85R"),
    ],
    ids=["encode", "scalar", "bytearray"],
)
def test_what_is_asked_for_again_takes_no_more_memory(big: bytes, ask: bytes, tmp_path: Path) -> None:
    """A megabyte in the file that a few bytes point at, over and over: not two gigabytes."""
    path = written(tmp_path, b"\x80\x02" + big + b"q\x000](" + AGAIN * ask + b"e.")
    tracemalloc.start()
    with pytest.raises(InputError, match="it holds something else"):
        read_frame(path, ["a"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_depth_does_no_harm(tmp_path: Path) -> None:
    depth = 200_000
    with pytest.raises(InputError, match="it holds something else"):
        read_frame(written(tmp_path, b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."), ["a"])


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the file is empty"):
        read_frame(written(tmp_path, b""), ["a"])


def test_a_file_beyond_the_limit_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "LIMIT", len(NUMBERS) - 1)
    monkeypatch.setattr(pickletools, "genops", None)
    with pytest.raises(InputError, match="save the table as Parquet"):
        read_frame(written(tmp_path, NUMBERS), ["a"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damage_is_refused_or_harmless(protocol: int, tmp_path: Path) -> None:
    """Single bytes changed, over and over: a table or one line, never another exception."""
    whole = pickle.dumps(pd.DataFrame({"a": [1, 2], "h": [[1], [2, np.int64(3)]], "t": ["x", None]}), protocol)
    draw, read = random.Random(protocol), 0
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            read += len(read_frame(written(tmp_path, bytes(content)), ["a"], ["h", "t"])) > 0
        except InputError:
            continue
    assert 0 < read < 500
