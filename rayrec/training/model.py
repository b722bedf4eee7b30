"""From a configuration and saved parts to a model ready to train or to score."""

import logging
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from rayrec.config import Config
from rayrec.config.training import Precision
from rayrec.data.catalogue import target_shares
from rayrec.data.prompts import resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.data.vectors import read_vectors
from rayrec.models.checkpoints import local_backbone
from rayrec.models.encoder import SequenceEncoder
from rayrec.models.lora import merge_lora
from rayrec.models.ranking.initial import initial_table
from rayrec.models.sasrecllm import DTYPES, ModelShape, SASRecLLM, build, calibrate_mapper
from rayrec.stages import STAGES, Part, StageName
from rayrec.training.hardware import check_hardware
from rayrec.training.heap import keep_freed_memory
from rayrec.training.imports import uncollected
from rayrec.training.job import DataFacts, StageJob, derive_seed
from rayrec.training.parts import load_part

_log = logging.getLogger(__name__)


def model_shape(config: Config, facts: DataFacts, *, with_backbone: bool) -> ModelShape:
    """Shape of the model on this node; the backbone is fetched here if it is not in this node's cache."""
    shape = ModelShape(users=facts.users, items=facts.items, max_len=facts.max_len)
    if not with_backbone:
        return shape
    folder = local_backbone(config.backbone.sources)
    answers = resolve_answers(load_tokenizer(folder))
    return replace(shape, backbone=folder, answers=(answers.yes, answers.no))


@uncollected()
def stage_model(job: StageJob) -> SASRecLLM:
    """The stage's model at its first step: what has an origin loaded, the rest drawn from the seed and stage's name.

    Raises:
        InputError: a part that the stage starts from is missing, damaged or of another shape, or this worker's GPU
            cannot do what the configuration asks.
    """
    quiet_libraries()
    keep_freed_memory()
    check_hardware(job.config, with_backbone=job.spec.reads.uses_backbone)
    shape = model_shape(job.config, job.facts, with_backbone=job.spec.reads.uses_backbone)
    torch.manual_seed(derive_seed(job.config.seed, job.stage, "weights"))
    model = build(
        job.config, shape, parts=job.parts, with_backbone=job.spec.reads.uses_backbone, speaks=job.spec.reads.answers
    )
    if job.initial:
        _start_from_names(model, job.initial)
    if job.config.encoder.centred:
        _centre(model, job.data)
    for part, folder in sorted(job.origins.items()):
        load_part(folder, part, model)
    if Part.MAPPER in job.parts and Part.MAPPER not in job.origins:
        calibrate_mapper(model)
    if merges_lora(job.config) and model.backbone and Part.LORA in job.origins and Part.LORA not in job.trains:
        merge_lora(model.backbone)
    _compile(job.config, model)
    return model


def _start_from_names(model: SASRecLLM, folder: str) -> None:
    assert isinstance(model.encoder, SequenceEncoder)
    table = model.encoder.item.weight
    with torch.no_grad():
        table.copy_(initial_table(table, read_vectors(folder)))


def _centre(model: SASRecLLM, folder: str) -> None:
    """Tell the encoders of ``model`` what the prepared data in ``folder`` asks about."""
    encoders = [module for module in model.modules() if isinstance(module, SequenceEncoder)]
    if encoders:
        share_V = torch.from_numpy(target_shares(folder))
        for encoder in encoders:
            encoder.centre_on(share_V)


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """A system to score with, as plain data."""

    config: Config
    facts: DataFacts
    data: str  # folder of the prepared data
    parts: Mapping[Part, str]  # part -> folder
    uses_backbone: bool


@uncollected()
def scoring_model(job: ScoringJob) -> SASRecLLM:
    """A system's model in eval mode, in the precision that it was trained in; raises as ``stage_model``."""
    quiet_libraries()
    keep_freed_memory()
    check_hardware(job.config, with_backbone=job.uses_backbone)
    shape = model_shape(job.config, job.facts, with_backbone=job.uses_backbone)
    torch.manual_seed(0)  # every weight that is drawn here is overwritten
    model = build(job.config, shape, parts=job.parts.keys(), with_backbone=job.uses_backbone)
    for part, folder in sorted(job.parts.items()):
        load_part(folder, part, model)
    if job.config.encoder.centred:
        _centre(model, job.data)
    if merges_lora(job.config) and model.backbone and Part.LORA in job.parts:
        merge_lora(model.backbone)
    if job.uses_backbone:
        cast_weights(model, job.config.engine.precision)
    _compile(job.config, model)
    model.set_mode(())
    return model


def cast_weights(model: SASRecLLM, precision: Precision) -> None:
    """As the engine casts them: buffers, the answers' rows among them, stay fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])


def _compile(config: Config, model: SASRecLLM) -> None:
    """In place, so that names of weights stay; for lengths of any kind, since every batch has its own."""
    if config.fast.compile and model.backbone is not None:
        model.backbone.decoder.compile(dynamic=True)


def merges_lora(config: Config) -> bool:
    """Added to weights of four bits, a LoRA would be rounded."""
    return config.fast.merge_lora and config.backbone.quantised is None


def warn_of_slow_bf16(config: Config, stages: Collection[StageName]) -> None:
    """One line where this CPU has no instructions for bf16: products then take several times as long as in fp32."""
    on_cpu = config.engine.precision == "bf16" and not config.cluster.gpus_per_worker
    if on_cpu and any(STAGES[stage].reads.uses_backbone for stage in stages) and not _has_bf16():
        _log.warning(
            "engine.precision: bf16, but this CPU has no instructions for it and takes several times as long as in"
            " fp32; --set engine.precision=fp32 is the mend, with a name of its own"
        )


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def quiet_libraries() -> None:
    """No progress bars and no advice from libraries: the run has one progress line of its own."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says on import that it looked for a GPU
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # transformers 5.23 has a new name for gradient checkpointing's switch that 5.20, on Python 3.10, does not know.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("torchao").setLevel(logging.ERROR)
