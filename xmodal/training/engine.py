"""The DeepSpeed engine around a student: its config filled in, its optimizer, its full-precision weights."""

import logging
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.utils import ZeRORuntimeException
from deepspeed.utils import safe_get_full_fp32_param

from shards.errors import UserError
from shards.json_object import parse_json_object
from xmodal.training.config import OptimizerConfig

# DeepSpeed calls what newer torch renamed, at every step.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
# The launcher's ranks would each say the same at INFO.
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


_USE_OURS = "give one of configs/deepspeed/zero{0,1,2,3}.json"
# What DeepSpeed raises for settings that it, or this machine, cannot do; pydantic's are ValueErrors.
_DEEPSPEED_ERRORS = (ValueError, TypeError, AssertionError, NotImplementedError, ZeRORuntimeException)


def micro_batches_per_step(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """How many forward passes of a rank make up a step. Raises UserError where the sizes do not divide."""
    if global_batch_size % world_size:
        raise UserError(
            f"global_batch_size: {global_batch_size} cannot be shared equally by {world_size} ranks",
            f"give a multiple of {world_size}",
        )
    local_batch_size = global_batch_size // world_size
    if not micro_batch_size or micro_batch_size >= local_batch_size:
        return 1
    if local_batch_size % micro_batch_size:
        raise UserError(
            f"micro_batch_size: {micro_batch_size} does not divide the {local_batch_size} samples of each rank",
            f"give a divisor of global_batch_size / ranks = {local_batch_size}",
        )
    return local_batch_size // micro_batch_size


def resolve_deepspeed_config(
    path: str, *, global_batch_size: int, micro_batches: int, world_size: int, max_grad_norm: float
) -> dict[str, Any]:
    """DeepSpeed's config with its "auto" values filled in. Raises UserError for a file that contradicts ours."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"deepspeed: {path}: {(error.strerror or str(error)).lower()}", _USE_OURS) from None
    config = parse_json_object(content, path, _USE_OURS)
    zero = config.get("zero_optimization")
    # DeepSpeed takes a key that it does not know, such as a misspelt one, for none, and trains without ZeRO.
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage: not 0, 1, 2 or 3", _USE_OURS)
    filled = {
        "train_batch_size": global_batch_size,
        "train_micro_batch_size_per_gpu": global_batch_size // world_size // micro_batches,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": max_grad_norm,
    }
    for key, value in filled.items():
        if config.get(key, "auto") not in ("auto", value):
            raise UserError(
                f"{path}: {key}: {config[key]} is not {value}, as the training config has it", 'write "auto"'
            )
        config[key] = value
    return config


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All parameters in two groups: decayed, and not (biases, norms, and those that the model names itself)."""
    named_by_model: Callable[[], Iterable[str]] = getattr(model, "no_weight_decay", tuple)
    exempt = set(named_by_model())
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (plain if parameter.ndim <= 1 or name in exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def create_engine(
    model: torch.nn.Module, optimizer: OptimizerConfig, deepspeed_config: dict[str, Any], deepspeed_file: str
) -> Any:
    """A DeepSpeed engine around `model`; every rank must hold the same weights. `set_learning_rate` before each step.

    Raises UserError, naming `deepspeed_file`, for settings that DeepSpeed or this machine cannot do.
    """
    # Without ZeRO, DeepSpeed takes a step when it is made, to have the optimizer's state: at a rate of 0 it changes no
    # weight, and the state is dropped, since it would count that step.
    adamw = torch.optim.AdamW(parameter_groups(model, optimizer.weight_decay), lr=0.0, betas=optimizer.betas)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=deepspeed_config)
    except _DEEPSPEED_ERRORS as error:
        message = " ".join(str(error).split())
        raise UserError(f"{deepspeed_file}: DeepSpeed refuses it: {message}", _USE_OURS) from error
    if engine.zero_optimization_stage() == 0:
        adamw.state.clear()
    return engine


def set_learning_rate(engine: Any, rate: float) -> None:
    """Use `rate` for the coming optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(engine: Any) -> float | None:
    """The global norm of the last step's gradients before clipping; None where the engine does not know it."""
    norm = engine.get_global_grad_norm()
    return None if norm is None or not math.isfinite(float(norm)) else float(norm)


def average_buffers(module: torch.nn.Module, world_size: int) -> None:
    """Give all ranks the mean of their buffers that training changes: each has seen its own share of the samples.

    Those are the running statistics of batch norms; else validation, and the student, would be the first rank's.
    """
    kept = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if world_size > 1 and name in kept and buffer.is_floating_point():
            mean = buffer.detach().float()
            dist.all_reduce(mean)
            buffer.copy_(mean / world_size)


def full_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The whole student in float32 on the CPU, gathered from all ranks: each of them must call it."""
    # Some buffers are no part of a state dict: the model makes them anew wherever it is built.
    kept = engine.module.state_dict().keys()
    weights = {name: _to_cpu(buffer) for name, buffer in engine.module.named_buffers() if name in kept}
    masters = masters_without_zero(engine.optimizer)
    for name, parameter in engine.module.named_parameters():
        master = masters[parameter] if parameter in masters else safe_get_full_fp32_param(parameter)
        # Where training is in float32, the parameter itself is all there is.
        weights[name] = _to_cpu(parameter if master is None else master)
    return weights


def masters_without_zero(optimizer: Any) -> dict[torch.Tensor, torch.Tensor]:
    """Parameter → its float32 master, which DeepSpeed keeps in lists where there is no ZeRO; empty under ZeRO."""
    if not isinstance(optimizer, FP16_UnfusedOptimizer):  # its name notwithstanding, it serves bf16 too
        return {}
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {parameter: master for low, high in groups for parameter, master in zip(low, high, strict=True)}


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu().clone()
    return tensor.float() if tensor.is_floating_point() else tensor
