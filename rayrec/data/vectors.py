"""A vector for each item as a folder: ``embeddings.safetensors`` and, written last, ``embeddings.json``, its card."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from rayrec import __version__, storage
from rayrec.errors import InputError

TABLE, CARD = "embeddings.safetensors", "embeddings.json"
_VECTOR = "vector"

Vectors = NDArray[np.float32]


def save_vectors(folder: str, vectors: Vectors, facts: Mapping[str, Any]) -> None:
    """Publish them, shape (items, width), with what is to be said of them."""
    content = safetensors.numpy.save({_VECTOR: vectors})
    card = {"rayrec": __version__, "sha256": hashlib.sha256(content).hexdigest(), **facts}
    text = json.dumps(card, indent=2, sort_keys=True) + "\n"
    storage.publish(folder, {TABLE: content, CARD: text.encode()}, mark=CARD)


def has_vectors(folder: str) -> bool:
    """They are there, whole."""
    return storage.exists(storage.join(folder, CARD))


def stated_sha256(folder: str) -> str | None:
    """The hash of their content as their card states it; None where it states none."""
    try:
        return str(json.loads(storage.read_text(storage.join(folder, CARD)))["sha256"])
    except (ValueError, KeyError):
        return None


def read_vectors(folder: str) -> Vectors:
    """The vectors; raises ``InputError`` where they are damaged."""
    path = storage.join(folder, TABLE)
    content = storage.read_bytes(path) if storage.exists(path) else b""
    if hashlib.sha256(content).hexdigest() != stated_sha256(folder):
        raise InputError(f"{path}: damaged or cut short; delete {folder}, and the same command computes it again")
    vectors: Vectors = safetensors.numpy.load(content)[_VECTOR]
    return vectors
