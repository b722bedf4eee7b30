"""EngineConfig -> a DeepSpeed engine whose trainable state can be taken out and put back whole.

The state that goes in and out is full tensors by name, free of world size and ZeRO stage, so a stage started on four
workers with ZeRO-3 goes on with one worker and ZeRO-0.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayrec.batch import Batch
from rayrec.config.training import EngineConfig, Precision, StageConfig
from rayrec.models.objectives import Objective
from rayrec.models.sasrecllm import SASRecLLM, trainable
from rayrec.stages import Part
from rayrec.training.imports import uncollected, without
from rayrec.training.job import StageJob

LIVE = 300_000_000  # weights that ZeRO-3 holds gathered at a time: a layer of an 8B model has 218 million
_BUCKET = 50_000_000
MOMENTS = ("exp_avg", "exp_avg_sq")
State = dict[str, Tensor]  # "weights/...", "exp_avg/...", "exp_avg_sq/..." -> fp32 on the CPU


def learning_rate(step: int, total: int, warmup: float, peak: float) -> float:
    """Linear warm-up, then cosine to zero over the whole stage; ``step`` counts from 0."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def parameter_groups(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], stage: StageConfig
) -> list[dict[str, Any]]:
    """AdamW groups by (rate, decay): no decay on biases and norms, a part's own rate where the stage gives one."""
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        part = Part(name.partition(".")[0])
        bare = id(parameter) in norms or name.rpartition(".")[2].startswith("bias")  # a GRU has bias_ih_l0
        key = (stage.part_lr.get(part, stage.lr), 0.0 if bare else stage.weight_decay)
        groups.setdefault(key, []).append(parameter)
    return [{"params": p, "lr": 0.0, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def bucket_size(trained: Sequence[int]) -> int:
    """Numbers of a gradient bucket: all there are, up to a limit, but no tensor is cut.

    DeepSpeed takes a bucket's memory whole, half a billion numbers where nothing is said.
    """
    return max(min(sum(trained), _BUCKET), *trained)


def deepspeed_config(
    engine: EngineConfig, precision: Precision, *, micro_batch: int, accumulation: int, bucket: int
) -> dict[str, Any]:
    """DeepSpeed's own configuration. Clipping is always set: left out, ZeRO and plain training clip differently."""
    zero: dict[str, Any] = {"stage": engine.zero_stage, "reduce_bucket_size": bucket}
    if engine.zero_stage == 3:
        zero |= {"stage3_max_live_parameters": LIVE, "stage3_max_reuse_distance": LIVE}
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if engine.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": engine.gradient_clipping,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
        if engine.zero_stage:  # without ZeRO, DeepSpeed accumulates in the weights' own type only
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision == "fp16":
        config["fp16"] = {"enabled": True, "initial_scale_power": 12}
    return config


class Engine:
    """A model under DeepSpeed: step it, read its state, restore it."""

    def __init__(
        self,
        objective: Objective,
        *,
        trains: Sequence[Part],
        engine: EngineConfig,
        precision: Precision,
        stage: StageConfig,
        total_steps: int,
        micro_batch: int,
        accumulation: int,
    ) -> None:
        """``objective``'s weights must be loaded already: ZeRO takes its fp32 copies from them here."""
        model = objective.model
        model.freeze_all_but(trains)
        self.parameters = trainable(model, trains)
        self.accumulation, self.stage, self.total_steps = accumulation, stage, total_steps
        self.objective = objective
        self._clipping = engine.gradient_clipping
        # ZeRO holds the fp32 truth of low-precision weights in places of its own; keep ours to seed it exactly.
        exact = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        groups = parameter_groups(objective, self.parameters, stage)
        fused = not torch.cuda.is_available()  # one pass over a tensor; a GPU would want its counts of steps there too
        optimizer = torch.optim.AdamW(groups, lr=0.0, foreach=False, fused=fused)
        config = deepspeed_config(
            engine,
            precision,
            micro_batch=micro_batch,
            accumulation=accumulation,
            bucket=bucket_size([p.numel() for p in self.parameters.values()]),
        )
        self._engine = _initialize(objective, optimizer, config)
        self._inner = optimizer
        self.device: torch.device = self._engine.device
        self._masters = _unsharded_masters(self._engine.optimizer)
        self._create_moments()
        for name, parameter in self.parameters.items():
            self._put(parameter, exact[name], None)

    @classmethod
    def of_stage(cls, job: StageJob, model: SASRecLLM) -> "Engine":
        """The engine that a stage trains ``model`` with."""
        return cls(
            Objective(model, job.settings.loss, job.settings.of_loss),
            trains=job.trains,
            engine=job.config.engine,
            precision=job.precision,
            stage=job.settings,
            total_steps=job.total_steps,
            micro_batch=job.micro_batch,
            accumulation=job.accumulation,
        )

    def step(self, micro_batches: Sequence[Batch], step: int) -> float:
        """One optimizer step over this worker's rows; returns the mean loss over all workers' rows."""
        assert len(micro_batches) == self.accumulation
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total_steps, self.stage.warmup, group["peak_lr"])
        losses = []
        for batch in micro_batches:
            loss = self._engine(batch.to(self.device))
            self._engine.backward(loss)
            self._engine.step()  # acts at the end of an accumulation, and counts before it
            losses.append(loss.detach().float())
        mean = torch.stack(losses).mean()
        dist.all_reduce(mean)
        return float(mean) / dist.get_world_size()

    @property
    def learning_rate(self) -> float:
        """Largest learning rate of the last step."""
        return max(float(g["lr"]) for g in self._engine.optimizer.param_groups)

    @property
    def gradient_norm(self) -> float | None:
        """Global gradient norm of the last step, before clipping; None where it is not told or not finite."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None or not math.isfinite(norm) else float(norm)

    def weights(self) -> State:
        """Full fp32 weights of the trained parts, on every rank (a collective under ZeRO-3)."""
        return {name: self._get(p, None).cpu() for name, p in self.parameters.items()}

    def state(self) -> State:
        """Weights and both Adam moments. Every rank must call it."""
        state = {f"weights/{name}": value for name, value in self.weights().items()}
        for moment in MOMENTS:
            state |= {f"{moment}/{name}": self._get(p, moment).cpu() for name, p in self.parameters.items()}
        return state

    def restore(self, state: Mapping[str, Tensor], taken_steps: int) -> None:
        """Put back what ``state`` gave after ``taken_steps`` optimizer steps.

        The weights were loaded into the module before, but a low-precision module has rounded them; here the fp32 truth
        follows.
        """
        for name, parameter in self.parameters.items():
            self._put(parameter, state[f"weights/{name}"], None)
            for moment in MOMENTS:
                self._put(parameter, state[f"{moment}/{name}"], moment)
        for held in self._inner.state.values():
            held["step"] = torch.tensor(float(taken_steps))

    def loss_scale(self) -> dict[str, float]:
        """The dynamic loss scaler's state (fp16), else empty."""
        scaler = _dynamic_scaler(self._engine.optimizer)
        return {k: float(getattr(scaler, k)) for k in _SCALER_STATE if hasattr(scaler, k)}

    def restore_loss_scale(self, state: Mapping[str, float]) -> None:
        """Put back what ``loss_scale`` gave, perhaps in another precision: what does not scale needs none of it."""
        scaler = _dynamic_scaler(self._engine.optimizer)
        for key in state.keys() & {name for name in _SCALER_STATE if hasattr(scaler, name)}:
            setattr(scaler, key, state[key] if key == "cur_scale" else int(state[key]))

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model, so that the memory of both can go."""
        self._engine.destroy()

    def _create_moments(self) -> None:
        """Adam's moments from the start instead of from the first step.

        DeepSpeed links parameters to their moments at the first group's first step, when the other groups have none.
        """
        optimizer = self._engine.optimizer
        owned = getattr(optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO-3 keeps them out of the groups
        for tensor in owned or [p for group in self._inner.param_groups for p in group["params"]]:
            self._inner.state[tensor] = {"step": torch.tensor(0.0)} | {m: torch.zeros_like(tensor) for m in MOMENTS}
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            optimizer._lazy_init_hp_params_optimizer_state()

    # DeepSpeed's accessors serve its sharded optimizers; under ZeRO-0 the whole tensors lie at hand.

    def _get(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state  # noqa: PLC0415

        if _is_unsharded(parameter):
            value = self._unsharded(parameter, moment)
        elif moment is None:
            value = safe_get_full_fp32_param(parameter)
        else:
            value = safe_get_full_optimizer_state(parameter, moment)
        return value.detach().float().clone()

    def _put(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        from deepspeed import utils  # noqa: PLC0415

        value = value.to(self.device)
        if _is_unsharded(parameter):
            with torch.no_grad():
                self._unsharded(parameter, moment).copy_(value)
        elif hasattr(parameter, "ds_id"):
            share = _zero3_share(parameter, value)
            if moment is None:
                utils.safe_set_local_fp32_param(parameter, share)
            else:
                utils.safe_set_local_optimizer_state(parameter, share, moment)
        elif moment is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)

    def _unsharded(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        master = self._masters.get(id(parameter), parameter)
        held: Tensor = master if moment is None else self._inner.state[master][moment]
        return held


_SCALERS = (("loss_scaler", "dynamic"), ("loss_scale_config", "dynamic_loss_scale"))  # with ZeRO, and without
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def _dynamic_scaler(optimizer: Any) -> Any | None:
    """What of DeepSpeed's optimizer holds a loss scale that moves; None but for fp16."""
    held = ((getattr(optimizer, name, None), moves) for name, moves in _SCALERS)
    return next((scaler for scaler, moves in held if getattr(scaler, moves, False)), None)


def _is_unsharded(parameter: nn.Parameter) -> bool:
    return not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping")


def _unsharded_masters(optimizer: Any) -> dict[int, Tensor]:
    """id of a low-precision parameter -> its fp32 master, for ZeRO-0's mixed-precision optimizer."""
    low, full = getattr(optimizer, "fp16_groups", []), getattr(optimizer, "fp32_groups", [])
    return {
        id(p): master for ps, masters in zip(low, full, strict=False) for p, master in zip(ps, masters, strict=True)
    }


def _zero3_share(parameter: Any, value: Tensor) -> Tensor:
    """This rank's share of a full tensor, padded: DeepSpeed's own setter fails where the ranks do not divide it."""
    share = parameter.ds_tensor.ds_numel
    padded = value.new_zeros(share * dist.get_world_size())
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, share * dist.get_rank(), share)


def _initialize(objective: Objective, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    engine, *_ = import_deepspeed().initialize(
        model=objective, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine


def import_deepspeed() -> Any:
    """The module, as this project uses it."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with uncollected(), without("mlflow"):  # which its autotuner would take
        import deepspeed  # noqa: PLC0415  (seconds to import, and reads the environment set above)
        from deepspeed import ops  # noqa: PLC0415

    # Without this DeepSpeed compiles a shared-memory all-reduce for a minute; gloo gives the same sums.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
