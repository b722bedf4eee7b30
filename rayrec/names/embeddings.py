"""Embeddings of a catalogue's names: computed once by actors of Ray Data, then taken from the store.

``{store}/names/{fingerprint}/``: as ``rayrec.data.vectors`` writes them. Deleting the folder costs computing them again
and nothing else.
"""

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import torch

from rayrec import storage
from rayrec.actors import answers
from rayrec.cache import file_sha256
from rayrec.config import fingerprint
from rayrec.config.training import ClusterConfig
from rayrec.data.vectors import has_vectors, read_vectors, save_vectors
from rayrec.models import names
from rayrec.models.checkpoints import local_backbone
from rayrec.models.names import NAME, VECTOR, NameEncoder, Pooling, Vectors
from rayrec.training.hardware import the_device

FOLDER = "names"
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
        "code": code_of(names),
    }
    folder = storage.join(store, FOLDER, fingerprint(content)[:_DIGITS])
    if not has_vectors(folder):
        save_vectors(folder, _computed(texts, model, cluster), content | {"sources": list(model.sources)})
    return read_vectors(folder)


def code_of(module: ModuleType) -> str:
    """Digest of a module's code; comments and layout do not count."""
    assert module.__file__ is not None
    return hashlib.sha256(ast.dump(ast.parse(Path(module.__file__).read_text("utf-8"))).encode()).hexdigest()


def _content(folder: Path) -> str:
    """Digest of every file of a model, wherever it lies."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def _computed(texts: Sequence[str | None], model: NameModel, cluster: ClusterConfig) -> Vectors:
    """Distinct names in the order of their lengths, so that a call's are alike, then each text's."""
    distinct = sorted({text or "" for text in texts}, key=lambda text: (len(text), text))
    place = {text: row for row, text in enumerate(distinct)}
    calls = [{NAME: distinct[start : start + _CALL_NAMES]} for start in range(0, len(distinct), _CALL_NAMES)]
    encoded = answers(calls, _Encoder, (model, cluster.cpus_per_worker), cluster)
    columns = [batch[VECTOR].combine_chunks() for batch in encoded]
    width = columns[0].type.list_size
    vectors = np.concatenate([column.flatten().to_numpy().reshape(-1, width) for column in columns])
    rows: Vectors = vectors[[place[text or ""] for text in texts]]
    return rows


class _Encoder:
    """One actor: a model fetched on its own node."""

    def __init__(self, model: NameModel, threads: int) -> None:
        self._model, self._threads = model, threads

    @cached_property
    def _encoder(self) -> NameEncoder:
        """On first use: an error of an actor's constructor would come back from Ray as text alone, after retries."""
        torch.set_num_threads(self._threads)
        return NameEncoder(self._model.folder(), self._model.pooling, the_device().type)

    def __call__(self, call: pa.Table) -> pa.Table:
        return self._encoder(pa.table({NAME: call[NAME].combine_chunks().flatten()}))
