"""A trained part comes back bit by bit, or is refused: damaged, of another kind, of another configuration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayrec.config.model import EncoderConfig, MapperConfig
from rayrec.errors import InputError
from rayrec.models.mapper import Mapper
from rayrec.models.sasrec import SASRec
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Part
from rayrec.training.parts import load_part, read_card, save_part


def model(width: int = 16, items: int = 10, blocks: int = 1) -> SASRecLLM:
    torch.manual_seed(width)
    encoder = SASRec(EncoderConfig(width=width, blocks=blocks), items=items, max_len=5)
    return SASRecLLM(encoder, Mapper(MapperConfig(expansion=2), width=width, hidden=24), None)


def weights(of: SASRecLLM, part: Part = Part.ENCODER) -> Mapping[str, Tensor]:
    return {name: parameter.detach() for name, parameter in of.parts()[part].items()}


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    folder = f"{tmp_path}/parts/pretrain_encoder/encoder"
    save_part(folder, Part.ENCODER, weights(model()), {"stage": "pretrain_encoder", "step": 3})
    return folder


def test_a_part_comes_back_bit_by_bit(encoder: str, tmp_path: Path) -> None:
    target = model()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(9.0)
    load_part(encoder, Part.ENCODER, target)
    expected = weights(model())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in weights(target).items())
    assert all((parameter == 9.0).all() for parameter in weights(target, Part.MAPPER).values())
    assert encoder == f"{tmp_path}/parts/pretrain_encoder/encoder"
    card = read_card(encoder)
    assert (card["part"], card["stage"], card["step"], len(card["sha256"])) == ("encoder", "pretrain_encoder", 3, 64)


def test_a_part_is_loaded_into_lower_precision(encoder: str) -> None:
    target = model().to(torch.bfloat16)
    load_part(encoder, Part.ENCODER, target)
    assert torch.equal(target.encoder.item.weight, model().encoder.item.weight.bfloat16())


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def cut_card(folder: Path) -> None:
    (folder / "part.json").write_text('{"part": "enc')


def empty_card(folder: Path) -> None:
    (folder / "part.json").write_text("{}")


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_card(folder: Path) -> None:
    (folder / "part.json").unlink()


def rename(folder: Path) -> None:
    card = json.loads((folder / "part.json").read_text())
    (folder / "part.json").write_text(json.dumps(card | {"part": "mapper"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "model.safetensors: damaged or cut short"),
        (cut_card, "part.json: damaged or cut short"),
        (empty_card, "part.json: damaged or cut short"),
        (lose_weights, "model.safetensors: no such file, although part.json is there"),
        (lose_card, "no trained part here; run the stage that trains it"),
        (rename, "holds the part 'mapper', not 'encoder'"),
    ],
)
def test_a_part_that_cannot_be_used_is_refused(damage: Any, message: str, encoder: str) -> None:
    damage(Path(encoder))
    refused(encoder, model(), message)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (model(width=32), "has shape (11, 16), this configuration needs (11, 32)"),
        (model(items=12), "item.weight has shape (11, 16), this configuration needs (13, 16)"),
        (model(blocks=2), "tensor 'blocks.1.attention_norm.bias' is only on one side"),
    ],
    ids=["width", "items", "blocks"],
)
def test_a_part_of_another_configuration_is_refused(target: SASRecLLM, message: str, encoder: str) -> None:
    refused(encoder, target, message)


def test_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(f"{tmp_path}/parts/none", model(), "no trained part here")


def refused(folder: str, target: SASRecLLM, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_part(folder, Part.ENCODER, target)
    assert message in str(caught.value) and folder in str(caught.value) and "\n" not in str(caught.value)
