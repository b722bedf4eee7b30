"""From a configuration and a saved LoRA to a language model that answers in words."""

from rayrec.config import Config
from rayrec.data.prompts import resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.models.checkpoints import local_backbone
from rayrec.models.generator import Generator
from rayrec.models.loading import load_causal_lm, speaking_backbone
from rayrec.models.lora import add_lora, merge_lora
from rayrec.models.sasrecllm import DTYPES, SASRecLLM
from rayrec.stages import Part
from rayrec.training.hardware import check_hardware
from rayrec.training.model import cast_weights, merges_lora, quiet_libraries
from rayrec.training.parts import load_part


def open_generator(config: Config, lora: str | None, device: str) -> Generator:
    """The backbone on this node, in the configured precision, with the LoRA in the folder ``lora`` if there is one.

    Raises:
        InputError: the backbone or the part cannot be had or does not fit, or this GPU cannot do what is configured.
    """
    quiet_libraries()
    check_hardware(config, with_backbone=True)
    folder = local_backbone(config.backbone.sources)
    tokenizer, quantised = load_tokenizer(folder), config.backbone.quantised is not None
    whole = load_causal_lm(folder, dtype=DTYPES[config.engine.precision], quantised=quantised)
    answers = resolve_answers(tokenizer)
    backbone = speaking_backbone(whole, answers=(answers.yes, answers.no))
    model = SASRecLLM(None, None, backbone)
    if lora is not None:
        add_lora(backbone, config.lora)
        load_part(lora, Part.LORA, model)
        if merges_lora(config):
            merge_lora(backbone)
    cast_weights(model, config.engine.precision)
    model.to(device)  # these are the weights of the whole
    return Generator(whole, tokenizer)
