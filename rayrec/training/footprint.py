"""Memory that a stage takes on one worker, from the model's configuration alone: nothing is loaded.

The model is built on the meta device, where tensors have shapes and no content. One forward pass there tells what
autograd keeps for the backward pass, tensor by tensor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rayrec.batch import FEATURES, Batch, Prompt
from rayrec.models.objectives import Objective
from rayrec.models.sasrecllm import DTYPES, ModelShape, SASRecLLM, build, trainable
from rayrec.stages import History
from rayrec.training.engine import LIVE, bucket_size
from rayrec.training.job import StageJob
from rayrec.training.kept import kept_bytes

TOKENS = 256  # of a prompt, assumed: ten titles seldom need more
# NF4: half a byte; of each 64 weights one constant of a byte, of each 256 of these one of four bytes. QLoRA, section 3.
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
CUDA_CONTEXT = 0.6e9  # of the driver and its libraries, before the first tensor; assumed
_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on one worker's device, and beside it in the host's memory."""

    trainable: int  # parameters, exact
    weights: float
    gradients: float
    optimizer: float  # fp32 copies of what is trained, and Adam's moments
    activations: float  # kept for the backward pass of one micro-batch
    buffers: float  # gathered weights and gradients; kept prefixes; the CUDA context
    host: float  # what is offloaded

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


def footprint(job: StageJob, shape: ModelShape, *, tokens: int = TOKENS) -> Footprint:
    """What ``job`` takes of each worker with prompts of ``tokens``; ``shape`` must be empty.

    Sharing of prefixes is left out, so activations are an upper bound.
    """
    fast = job.config.fast
    plain = fast.plain_attention and not job.config.cluster.gpus_per_worker
    config = job.config.model_copy(update={"fast": fast.model_copy(update={"plain_attention": plain})})
    with torch.device("meta"):
        reads = job.spec.reads
        model = build(config, shape, parts=job.parts, with_backbone=reads.uses_backbone, speaks=reads.answers)
        activations = _activations(job, model, tokens)
    engine, workers = job.config.engine, job.config.cluster.least
    width = torch.finfo(DTYPES[job.precision]).bits // 8
    sizes = [p.numel() for p in trainable(model, job.trains).values()]
    trained = sum(sizes)
    total = sum(p.numel() for p in model.parameters())
    four_bits = _linear(model) if job.config.backbone.quantised else 0
    weights = ((total - four_bits) * width + four_bits * _NF4) / (workers if engine.zero_stage == 3 else 1)
    low = width < _FP32 or engine.zero_stage > 0  # where ZeRO or low precision keeps an fp32 copy
    optimizer = trained * (12 if low else 8) / (workers if engine.zero_stage else 1)
    gradients = trained * width + (trained * _FP32 / (workers if engine.zero_stage > 1 else 1) if low else 0)
    live = min(total, LIVE) * width if engine.zero_stage == 3 else 0
    buffers = live + (bucket_size(sizes) * width if engine.zero_stage else 0) + kept_bytes(job)
    offloaded = {"none": 0.0, "optimizer": optimizer, "all": optimizer + weights}[engine.offload]
    return Footprint(
        trainable=trained,
        weights=0 if engine.offload == "all" else weights,
        gradients=gradients,
        optimizer=optimizer if engine.offload == "none" else 0,
        activations=activations,
        buffers=buffers + (CUDA_CONTEXT if job.config.cluster.gpus_per_worker else 0),
        host=offloaded,
    )


def _linear(model: SASRecLLM) -> int:
    """Weights of the frozen linear layers, which are what bitsandbytes packs."""
    if model.backbone is None:
        return 0
    layers = ((n, m) for n, m in model.backbone.decoder.named_modules() if isinstance(m, nn.Linear))
    return sum(layer.weight.numel() for name, layer in layers if ".lora_" not in name)


def _activations(job: StageJob, model: SASRecLLM, tokens: int) -> float:
    rows, length = job.micro_batch, job.facts.max_len
    model.freeze_all_but(job.trains)
    model.to(DTYPES[job.precision])
    user, history, item = torch.ones(rows).long(), torch.ones(rows, length).long(), torch.ones(rows).long()
    label = torch.ones(rows)
    prompt = None
    if model.backbone is not None:
        soft = torch.ones(rows, 2, job.config.mapper.tokens).long() if model.mapper is not None else None
        answer_at = torch.ones(rows).long() if job.spec.reads.answers else None
        prompt = Prompt(torch.ones(rows, tokens).long(), torch.full((rows,), tokens), soft, answer_at)
    history_labels = history if job.config.encoder.history is History.RATED else None
    features = torch.ones(rows, FEATURES)
    batch = Batch(user, history, item, label, prompt, label_BL=history_labels, floor_B=label, features_BF=features)
    model.set_mode(job.trains)
    # Which positions a loss takes is content, which there is none of: all of them, an upper bound.
    every = _config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]  # is put there when imported
    with _counted(model) as kept, every:
        Objective(model, job.settings.loss, job.settings.of_loss)(batch)
    sizes = list(kept.values())
    if model.backbone is None or not job.config.engine.gradient_checkpointing:
        return float(sum(sizes) + 2 * max(sizes))  # the last term: what a layer's backward pass computes in
    shape: Any = model.backbone.decoder.config
    one_layer = sum(sizes) / shape.num_hidden_layers
    inputs = rows * tokens * shape.num_hidden_layers * shape.hidden_size * torch.finfo(DTYPES[job.precision]).bits / 8
    return float(inputs + one_layer + 2 * max(sizes))


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[int, int]]:
    """Storage -> bytes of all that autograd keeps in the block, weights left out."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # else an address may come twice
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, _AsOnAGpu(), _no_recomputing(model):
        yield kept


class _AsOnAGpu(TorchFunctionMode):
    """What shapes alone cannot tell: which attention runs, and whether a condition on values holds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:  # a fused kernel keeps no (T, T) matrix; the meta device's does
            return _KeepsItsInputs.apply(*args[:3])  # type: ignore[no-untyped-call]
        if func is Tensor.__bool__:  # transformers asks whether a batch is one of plain sequences: it is
            return True
        return func(*args, **(kwargs or {}))


class _KeepsItsInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, found)
        return found


@contextmanager
def _no_recomputing(model: nn.Module) -> Iterator[None]:
    """Gradient checkpointing off: it hides what its layers keep."""
    held = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in held:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    yield
    for module in held:
        module.gradient_checkpointing = True  # type: ignore[assignment]
