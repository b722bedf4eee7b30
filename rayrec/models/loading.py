"""A folder of weights, or their shape alone -> a frozen backbone.

transformers is imported where it is used: that takes seconds, which the encoder's stage need not spend.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rayrec.errors import InputError
from rayrec.models.backbone import Backbone, WordLoss


def load_backbone(
    folder: Path,
    *,
    answers: tuple[int, int],
    yes_only: bool,
    dtype: torch.dtype,
    checkpointing: bool = False,
    quantised: bool = False,
    speaks: bool = False,
) -> Backbone:
    """The frozen backbone in ``folder`` (transformers layout); ``answers`` are the token ids of "Yes" and "No".

    ``quantised``: linear layers in 4 bits (NF4, constants quantised again), on this process's GPU. ``speaks``: it can
    learn answers in words, too.

    Raises:
        InputError: the folder holds no causal LM that transformers can load, or none that can learn to speak.
    """
    model = load_causal_lm(folder, dtype=dtype, quantised=quantised)
    return _backbone(model, answers, yes_only, checkpointing, speaks)


def load_causal_lm(folder: Path, *, dtype: torch.dtype, quantised: bool = False) -> Any:
    """The whole model of transformers, output head and all; raises as ``load_backbone``."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    options = _nf4(dtype) if quantised else {}
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: not a causal language model that transformers can load: {error}") from None


def _nf4(dtype: torch.dtype) -> dict[str, Any]:
    """Packed in tensors of the compute type, since ZeRO-3 shards only what has one type."""
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )
    return {"quantization_config": settings, "device_map": {"": torch.cuda.current_device()}}


def empty_backbone(
    shape: Path,
    *,
    answers: tuple[int, int],
    yes_only: bool,
    dtype: torch.dtype,
    checkpointing: bool = False,
    speaks: bool = False,
) -> Backbone:
    """The same with no weights loaded and nothing quantised, on torch's default device, which may be "meta".

    ``shape`` is the folder, or its config.json alone.

    Raises:
        InputError: no configuration of a causal LM that transformers knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    try:
        config = AutoConfig.from_pretrained(shape, local_files_only=True)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{shape}: not the configuration of a causal language model: {error}") from None
    return _backbone(model, answers, yes_only, checkpointing, speaks)


def speaking_backbone(model: Any, *, answers: tuple[int, int]) -> Backbone:
    """A backbone that learns answers in words, around the very weights of ``model``.

    Raises:
        InputError: the head adds a bias to its products, which the loss of answers leaves out.
    """
    return _backbone(model, answers, yes_only=False, checkpointing=False, speaks=True)


def _backbone(model: Any, answers: tuple[int, int], yes_only: bool, checkpointing: bool, speaks: bool) -> Backbone:
    rows = model.get_output_embeddings().weight[list(answers)].detach()
    decoder = model.get_decoder()
    if checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})  # the reentrant kind needs trained embeddings
    backbone = Backbone(decoder.requires_grad_(False), rows, yes_only=yes_only)
    backbone.recomputes = checkpointing
    if speaks:
        head = model.get_output_embeddings().requires_grad_(False)
        if getattr(head, "bias", None) is not None:
            raise InputError("backbone: its output head has a bias, which answers in words lack; choose another one")
        backbone.word_loss = WordLoss(head.weight)
    return backbone
