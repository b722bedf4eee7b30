"""LoRA from peft on a backbone's linear layers: https://arxiv.org/abs/2106.09685.

peft is imported where it is used: that takes seconds, which the encoder's stage need not spend.
"""

from typing import Any

from rayrec.config.model import LoraConfig
from rayrec.errors import InputError
from rayrec.models.backbone import Backbone
from rayrec.models.dropout import replace_dropouts


def lora_adapter(config: LoraConfig, task: str | None = None) -> Any:
    """The configuration as a ``peft.LoraConfig``; ``task`` is peft's name of what the model is for."""
    import peft  # noqa: PLC0415

    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
        task_type=task,
    )


def add_lora(backbone: Backbone, config: LoraConfig) -> None:
    """Wrap the target projections of ``backbone`` in place.

    Raises:
        InputError: no module of the backbone bears one of the target names.
    """
    import peft  # noqa: PLC0415

    names = {name.rpartition(".")[2] for name, _ in backbone.decoder.named_modules()}
    if missing := sorted(set(config.targets) - names):
        raise InputError(f"lora.targets: the backbone has no module named {', '.join(missing)}")
    peft.inject_adapter_in_model(lora_adapter(config), backbone.decoder)
    replace_dropouts(backbone.decoder)


def merge_lora(backbone: Backbone) -> None:
    """Add a LoRA that stays frozen to the weights it stands beside, and take its modules away."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    for name, module in list(backbone.decoder.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(backbone.decoder.get_submodule(parent), leaf, module.get_base_layer())
