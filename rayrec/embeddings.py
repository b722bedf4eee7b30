"""Embeddings of a catalogue's names: computed once by actors of Ray Data, then taken from the store.

``{store}/names/{fingerprint}/``: ``embeddings.safetensors`` and ``embeddings.json`` (what they are of), written last.
Deleting the folder costs computing them again and nothing else.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import safetensors.numpy
import torch

from rayrec import __version__, storage
from rayrec.cache import file_sha256
from rayrec.config import fingerprint
from rayrec.config.training import ClusterConfig
from rayrec.data.blocks import calm_ray_data, input_error
from rayrec.errors import InputError
from rayrec.models import names
from rayrec.models.checkpoints import local_backbone
from rayrec.models.names import NAME, VECTOR, NameEncoder, Pooling, Vectors
from rayrec.training.launch import worker_resources

FOLDER, TABLE, CARD = "names", "embeddings.safetensors", "embeddings.json"
_DIGITS = 16  # of a fingerprint, in the name of a folder
_CALL_NAMES = 1024  # of one actor call


@dataclass(frozen=True)
class NameModel:
    """The language model that reads the names, and what of it is a name's vector."""

    sources: tuple[str, ...]  # as those of a backbone
    pooling: Pooling = Pooling.MEAN

    def folder(self) -> Path:
        """The model on this node; raises ``InputError`` where no source delivers."""
        return local_backbone(self.sources, what="names")


def name_embeddings(texts: Sequence[str | None], model: NameModel, store: str, cluster: ClusterConfig) -> Vectors:
    """One row of unit length a name, zero for a missing one; shape (texts, D). Equal names have the same bits.

    They are in ``store`` already if the same texts went through a model of the same content; else ray is connected,
    and ``cluster`` says how many actors there are.

    Raises:
        InputError: the model cannot be had or loaded, or what is stored is damaged.
    """
    content = {
        "texts": fingerprint([text or "" for text in texts]),
        "model": _content(model.folder()),
        "pooling": model.pooling.value,
        "code": hashlib.sha256(ast.dump(ast.parse(Path(names.__file__).read_text("utf-8"))).encode()).hexdigest(),
    }
    folder = storage.join(store, FOLDER, fingerprint(content)[:_DIGITS])
    if not storage.exists(storage.join(folder, CARD)):
        _save(folder, _computed(texts, model, cluster), content | {"sources": list(model.sources)})
    return _stored(folder)


def _content(folder: Path) -> str:
    """Digest of every file of a model, wherever it lies."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def _computed(texts: Sequence[str | None], model: NameModel, cluster: ClusterConfig) -> Vectors:
    """Distinct names in the order of their lengths, so that a call's are alike, then each text's."""
    distinct = sorted({text or "" for text in texts}, key=lambda text: (len(text), text))
    place = {text: row for row, text in enumerate(distinct)}
    try:
        with calm_ray_data():
            columns = [batch[VECTOR].combine_chunks() for batch in _batches(distinct, model, cluster)]
    except Exception as error:  # Ray wraps what the actors raised in several ways
        if (cause := input_error(error)) is not None:
            raise cause from None
        raise
    width = columns[0].type.list_size
    vectors = np.concatenate([column.flatten().to_numpy().reshape(-1, width) for column in columns])
    rows: Vectors = vectors[[place[text or ""] for text in texts]]
    return rows


def _batches(distinct: Sequence[str], model: NameModel, cluster: ClusterConfig) -> Iterator[pa.Table]:
    """The calls are cut beforehand, so that which actor runs one changes no bit of its vectors."""
    calls = [{NAME: distinct[start : start + _CALL_NAMES]} for start in range(0, len(distinct), _CALL_NAMES)]
    resources = worker_resources(cluster.cpus_per_worker, cluster.gpus_per_worker)
    encoded = ray.data.from_items(calls, override_num_blocks=len(calls)).map_batches(
        _Encoder,
        fn_constructor_args=(model, cluster.cpus_per_worker),
        batch_size=None,  # one call is one block
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=min(cluster.least, len(calls)), max_size=min(cluster.most, len(calls))
        ),
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
    )
    return iter(encoded.iter_batches(batch_size=None, batch_format="pyarrow"))


class _Encoder:
    """One actor: a model fetched on its own node."""

    def __init__(self, model: NameModel, threads: int) -> None:
        self._model, self._threads = model, threads

    @cached_property
    def _encoder(self) -> NameEncoder:
        """On first use: an error of an actor's constructor would come back from Ray as text alone, after retries."""
        torch.set_num_threads(self._threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return NameEncoder(self._model.folder(), self._model.pooling, device)

    def __call__(self, call: pa.Table) -> pa.Table:
        return self._encoder(pa.table({NAME: call[NAME].combine_chunks().flatten()}))


def _save(folder: str, vectors: Vectors, facts: dict[str, Any]) -> None:
    content = safetensors.numpy.save({VECTOR: vectors})
    card = {"rayrec": __version__, "sha256": hashlib.sha256(content).hexdigest(), **facts}
    text = json.dumps(card, indent=2, sort_keys=True) + "\n"
    storage.publish(folder, {TABLE: content, CARD: text.encode()}, mark=CARD)


def _stored(folder: str) -> Vectors:
    path = storage.join(folder, TABLE)
    content = storage.read_bytes(path) if storage.exists(path) else b""
    try:
        stated = json.loads(storage.read_text(storage.join(folder, CARD)))["sha256"]
    except (ValueError, KeyError):
        stated = None
    if hashlib.sha256(content).hexdigest() != stated:
        raise InputError(f"{path}: damaged or cut short; delete {folder}, and the same command computes it again")
    vectors: Vectors = safetensors.numpy.load(content)[VECTOR]
    return vectors
