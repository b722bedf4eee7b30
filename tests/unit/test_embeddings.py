"""The store of name embeddings: what is the same key, what is another, and that nothing is half-written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrec.config.training import ClusterConfig
from rayrec.errors import InputError
from rayrec.models.names import NameEncoder, Pooling, Vectors
from rayrec.names import embeddings
from rayrec.names.embeddings import NameModel, name_embeddings

TEXTS = ["A Story (1994)", None, "Film", "A Story (1994)"]


class Counted:
    """Stands in for the actors, in this process, and counts how often they are asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(embeddings, "_computed", self)

    def __call__(self, texts: Any, model: NameModel, cluster: ClusterConfig) -> Vectors:
        self.calls += 1
        return NameEncoder(model.folder(), model.pooling).encode(texts)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def stored(store: Path, model: Path, texts: Any = TEXTS, pooling: Pooling = Pooling.MEAN) -> Vectors:
    return name_embeddings(texts, NameModel((str(model),), pooling), str(store), ClusterConfig())


def test_they_are_computed_once(tiny: Path, tmp_path: Path, counted: Counted) -> None:
    first = stored(tmp_path, tiny)
    assert np.array_equal(first, NameEncoder(tiny, Pooling.MEAN).encode(TEXTS)) and first.dtype == np.float32
    elsewhere = tmp_path / "copy"
    shutil.copytree(tiny, elsewhere)
    assert np.array_equal(stored(tmp_path, elsewhere), first)  # the same content by another name
    assert counted.calls == 1
    (folder,) = (tmp_path / "names").iterdir()
    card = json.loads((folder / "embeddings.json").read_text())
    assert card["sources"] == [str(tiny)] and card["pooling"] == "mean"


def test_whatever_determines_them_is_in_the_key(tiny: Path, tmp_path: Path, counted: Counted) -> None:
    stored(tmp_path, tiny)
    stored(tmp_path, tiny, texts=TEXTS[::-1])
    stored(tmp_path, tiny, pooling=Pooling.LAST)
    other = tmp_path / "model"
    shutil.copytree(tiny, other)
    limits = json.loads((other / "tokenizer_config.json").read_text()) | {"model_max_length": 2}
    (other / "tokenizer_config.json").write_text(json.dumps(limits))
    stored(tmp_path, other)
    assert counted.calls == 4
    assert len(list((tmp_path / "names").iterdir())) == 4


def test_a_missing_name_is_a_blank_one(tiny: Path, tmp_path: Path, counted: Counted) -> None:
    stored(tmp_path, tiny)
    stored(tmp_path, tiny, texts=[text or "" for text in TEXTS])
    assert counted.calls == 1


@pytest.mark.parametrize("harm", ["cut", "gone", "card"])
def test_what_is_damaged_is_told(harm: str, tiny: Path, tmp_path: Path, counted: Counted) -> None:
    stored(tmp_path, tiny)
    (folder,) = (tmp_path / "names").iterdir()
    table = folder / "embeddings.safetensors"
    match harm:
        case "cut":
            table.write_bytes(table.read_bytes()[:-1])
        case "gone":
            table.unlink()
        case "card":
            (folder / "embeddings.json").write_text("{")
    with pytest.raises(InputError, match=r"embeddings.safetensors: damaged or cut short; delete"):
        stored(tmp_path, tiny)
    shutil.rmtree(folder)
    assert np.array_equal(stored(tmp_path, tiny), NameEncoder(tiny, Pooling.MEAN).encode(TEXTS))


def test_what_fails_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embeddings, "_computed", fails)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, tiny)
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither a folder with a config.json nor a .gguf file; mend names.sources"):
        stored(tmp_path / "store", tmp_path)
    with pytest.raises(InputError, match="names: no source delivers"):
        stored(tmp_path / "store", tmp_path / "absent")
    assert not (tmp_path / "store").exists()
