"""Handoff: trained parts on disk, each saved, verified and loaded on its own (plug-and-play, paper section 3.2.3).

A part's folder holds ``model.safetensors`` (fp32) and ``part.json`` (what, from which stage and configuration,
from which parents), which is written last.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rayrec import __version__, storage
from rayrec.errors import InputError
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Part
from rayrec.training.job import StageJob

WEIGHTS, CARD = "model.safetensors", "part.json"


def is_complete(job: StageJob) -> bool:
    """All parts that the stage trains are there."""
    return all(storage.exists(storage.join(job.part_folder(part), CARD)) for part in job.trains)


def save_part(folder: str, part: Part, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Publish one part; ``card`` says where it comes from."""
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()})
    digest = hashlib.sha256(content).hexdigest()
    facts = {"part": part.value, "sha256": digest, "rayrec": __version__, **card}
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    storage.publish(folder, {WEIGHTS: content, CARD: text.encode()}, mark=CARD)


def read_card(folder: str) -> dict[str, Any]:
    """The part's ``part.json``.

    Raises:
        InputError: there is no complete part, or its card is damaged.
    """
    if not storage.exists(storage.join(folder, CARD)):
        raise InputError(f"{folder}: no trained part here; run the stage that trains it, or name a part that is there")
    try:
        card: dict[str, Any] = json.loads(storage.read_text(storage.join(folder, CARD)))
    except ValueError:
        card = {}
    if "sha256" not in card:
        raise InputError(f"{folder}/{CARD}: damaged or cut short; train or copy the part again")
    return card


def read_part(folder: str) -> dict[str, Tensor]:
    """The tensors of a saved part by name.

    Raises:
        InputError: the part is missing or cut short.
    """
    return _weights(folder, read_card(folder))


def _weights(folder: str, card: Mapping[str, Any]) -> dict[str, Tensor]:
    path = storage.join(folder, WEIGHTS)
    if not storage.exists(path):
        raise InputError(f"{path}: no such file, although {CARD} is there; train or copy the part again")
    content = storage.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise InputError(f"{path}: damaged or cut short (its sha256 is not the one in {CARD}); train or copy it again")
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from None


def load_part(folder: str, part: Part, model: SASRecLLM) -> None:
    """Copy a saved part into ``model``.

    Raises:
        InputError: the part is missing, cut short, of another kind, or of another shape than the model's.
    """
    card = read_card(folder)
    if card.get("part") != part.value:
        raise InputError(f"{folder}: holds the part {card.get('part')!r}, not {part.value!r}; name the right folder")
    path, saved = storage.join(folder, WEIGHTS), _weights(folder, card)
    expected = model.parts()[part]
    if sorted(saved) != sorted(expected):
        odd = sorted(saved.keys() ^ expected.keys())
        raise InputError(f"{path}: tensor {odd[0]!r} is only on one side; the part is of another model configuration")
    with torch.no_grad():
        for name, parameter in expected.items():
            if saved[name].shape != parameter.shape:
                raise InputError(
                    f"{path}: {name} has shape {tuple(saved[name].shape)}, this configuration needs"
                    f" {tuple(parameter.shape)}; use the configuration that the part was trained with"
                )
            parameter.copy_(saved[name])
