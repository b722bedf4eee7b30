"""Name embeddings by actors of Ray Data equal those of one process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data

from rayrec.config.training import ClusterConfig
from rayrec.errors import InputError
from rayrec.models.names import NameEncoder, Pooling, Vectors
from rayrec.models.tiny import write_tiny_llama
from rayrec.names import embeddings
from rayrec.names.embeddings import NameModel, name_embeddings

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("ray_local")]

TEXTS = [None if i % 50 == 7 else f"The Film {i % 130}{', a story' * (i % 9)}" for i in range(300)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "model")
    return tmp_path / "model"


def computed(model: Path, store: Path, workers: int, texts: Sequence[str | None] = TEXTS) -> Vectors:
    cluster = ClusterConfig(workers=workers)
    return name_embeddings(texts, NameModel((str(model),), Pooling.LAST), str(store), cluster)


def test_actors_equal_one_process(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_CALL_NAMES", 32)  # ten calls and more
    two = computed(model, tmp_path / "two", workers=2)
    np.testing.assert_allclose(two, NameEncoder(model, Pooling.LAST).encode(TEXTS), atol=1e-6)
    assert not two[7].any() and two[8].any()
    one = computed(model, tmp_path / "one", workers=1)
    assert np.array_equal(one, two)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    moved = computed(model, tmp_path / "moved", 2, [TEXTS[i] for i in order])
    assert np.array_equal(moved, two[order])  # the same names have the same bits, wherever they stand

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(ray.data, "from_items", never)
    assert np.array_equal(computed(model, tmp_path / "two", workers=1), two)


def test_an_actor_that_fails_is_told_in_one_line(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="not a language model that transformers can load") as error:
        computed(model, tmp_path / "store", workers=1)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()
