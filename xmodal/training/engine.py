"""The DeepSpeed engine around a student: its config filled in, its optimizer, its full-precision weights."""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.utils import ZeRORuntimeException
from deepspeed.utils import safe_get_full_fp32_param
from timm.optim import param_groups_layer_decay

from shards.errors import UserError
from shards.json_object import parse_json_object
from xmodal.students import classifiers
from xmodal.training import ema
from xmodal.training.config import OptimizerConfig
from xmodal.training.finite_steps import leave_out_nonfinite_steps

# DeepSpeed calls what newer torch renamed, at every step.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
# The launcher's ranks would each say the same at INFO.
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# Said of RAdam each time an engine is made: our configs allow it knowingly, and tests hold it to torch's own.
logging.getLogger("DeepSpeed").addFilter(lambda record: "untested optimizer" not in record.getMessage())


_USE_OURS = "give one of configs/deepspeed/*.json"
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


_CLONE = Path(__file__).parent.parent.parent


def deepspeed_file(path: str) -> Path:
    """DeepSpeed's config: from the working folder, or else, as ours are known everywhere, from this project's."""
    return Path(path) if Path(path).exists() or not (_CLONE / path).is_file() else _CLONE / path


def resolve_deepspeed_config(
    path: str, *, global_batch_size: int, micro_batches: int, world_size: int, max_grad_norm: float
) -> dict[str, Any]:
    """DeepSpeed's config with its "auto" values filled in. Raises UserError for a file that contradicts ours."""
    try:
        content = deepspeed_file(path).read_bytes()
    except OSError as error:
        raise UserError(f"deepspeed: {path}: {(error.strerror or str(error)).lower()}", _USE_OURS) from None
    config = parse_json_object(content, path, _USE_OURS)
    for key, remedy in _OURS_ALONE.items():
        if key in config:
            raise UserError(f"{path}: {key}: DeepSpeed's file is not asked for it", f"take it out, and {remedy}")
    for key in ("fp16", "bf16", "data_types"):
        if not isinstance(section := config.get(key, {}), dict):
            raise UserError(f"{path}: {key}: {json.dumps(section)} is no section", _USE_OURS)
        if section.get("enabled") == "auto":
            raise UserError(f'{path}: {key}.enabled: "auto", and nothing else says it', "write true or false")
    if "bfloat16" in config:
        raise UserError(f"{path}: bfloat16: an old name of this section", "write bf16")
    config = _without_auto(config)
    zero = config.get("zero_optimization")
    # DeepSpeed takes a key that it does not know, such as a misspelt one, for none, and trains without ZeRO.
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage: not 0, 1, 2 or 3", _USE_OURS)
    for key, why in _ALWAYS_TRUE.items():
        section, _, name = key.rpartition(".")
        value = (config.get(section, {}) if section else config).get(name, True)
        if value is not True:
            raise UserError(f"{path}: {key}: {json.dumps(value)}, but {why}", "take it out, or write true")
    try:
        DeepSpeedZeroConfig(**zero)
    except _DEEPSPEED_ERRORS as error:
        raise _refused(path, error) from error
    if zero["stage"] == 0 and config.get("fp16", {}).get("enabled"):
        raise UserError(
            f"{path}: fp16: without ZeRO, DeepSpeed divides gradients by a loss scale that no loss was multiplied with",
            "set zero_optimization.stage to 1, 2 or 3, or train in bf16",
        )
    filled = {
        "train_batch_size": global_batch_size,
        "train_micro_batch_size_per_gpu": global_batch_size // world_size // micro_batches,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": max_grad_norm,
    }
    for key, value in filled.items():
        if config.get(key, value) != value:
            raise UserError(
                f"{path}: {key}: {config[key]} is not {value}, as the training config has it", 'write "auto"'
            )
        config[key] = value
    return config


_OURS_ALONE = {
    "optimizer": "set optimizer.kind, lr, betas and weight_decay of the training config",
    "scheduler": "set optimizer.warmup_share and final_lr_share of the training config",
}
"""Keys of DeepSpeed's config that have no effect on an engine that is given its optimizer, and what has."""
_FINDS_NONFINITE = "steps whose gradients are not finite are found, and skipped, by it"
_ALWAYS_TRUE = {
    "bf16.check_grad_overflow": _FINDS_NONFINITE,
    "zero_optimization.compute_grad_norm": _FINDS_NONFINITE,
    "managed_gradient_accumulation": "without it, every micro-batch would be a step of the optimizer",
}
"""Settings of DeepSpeed's config that would silently change what a step is, and how."""


def _without_auto(section: dict[str, Any]) -> dict[str, Any]:
    """As DeepSpeed reads "auto" in most of its sections: as if nothing stood there."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if value != "auto"
    }


def _refused(path: str, error: Exception) -> UserError:
    return UserError(f"{path}: DeepSpeed refuses it: {' '.join(str(error).split())}", _USE_OURS)


def parameter_groups(model: torch.nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """All parameters, those decayed apart from those that are not (biases, norms, and what the model names itself), and
    the head's (`in_head`) apart from the backbone's.

    With a `layer_decay` below 1, the groups of each layer have an `lr_scale`: its share of the learning rate.
    """
    named_by_model: Callable[[], Iterable[str]] = getattr(model, "no_weight_decay", tuple)
    exempt = set(named_by_model())
    if layer_decay < 1:
        groups = param_groups_layer_decay(model, weight_decay, exempt, layer_decay=layer_decay)
    else:
        decayed: list[torch.nn.Parameter] = []
        plain: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (plain if parameter.ndim <= 1 or name in exempt else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    head = _head_parameters(model)
    return [
        {**group, "params": parameters, "in_head": in_head}
        for group in groups
        for in_head in (False, True)
        if (parameters := [parameter for parameter in group["params"] if (parameter in head) == in_head])
    ]


def _head_parameters(model: torch.nn.Module) -> set[torch.nn.Parameter]:
    return {parameter for head in classifiers(model) for parameter in head.parameters()}


@contextmanager
def frozen_backbone(module: torch.nn.Module) -> Iterator[None]:
    """Within it no gradient goes to the backbone, which is in evaluation mode: neither drop path nor running means.

    Outside of it DeepSpeed sees all parameters as trained ones, so checkpoints and exports are those of any other run.
    """
    head = _head_parameters(module)
    frozen = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter not in head]
    module.eval()
    for classifier in classifiers(module):
        classifier.train()
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def create_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of all of a model's parameters, at a rate of 0: `set_learning_rate` before each step.

    With an `ema_decay`, it keeps the moving average of the weights as well: `set_ema_decay` before each step.
    """
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    optimizer: torch.optim.Optimizer
    if config.kind == "radam":
        optimizer = torch.optim.RAdam(groups, lr=0.0, betas=config.betas, decoupled_weight_decay=True)
    else:
        # Fused, it goes over memory once: a step of 86 M parameters takes a core 0.11 s instead of 0.72.
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)
    if config.ema_decay:
        ema.keep_average(optimizer)
    return optimizer


def create_engine(
    model: torch.nn.Module, optimizer: OptimizerConfig, deepspeed_config: dict[str, Any], path: str
) -> Any:
    """A DeepSpeed engine around `model`; every rank must hold the same weights. `set_learning_rate` before each step.

    A step whose gradients are not finite changes nothing. Raises UserError, naming the file `path`, for settings that
    DeepSpeed or this machine cannot do.
    """
    # Without ZeRO, DeepSpeed takes a step when it is made, to have the optimizer's state: at a rate of 0 it changes no
    # weight, and the state is dropped, since it would count that step.
    base = create_optimizer(model, optimizer)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=base, config=deepspeed_config)
    except _DEEPSPEED_ERRORS as error:
        raise _refused(path, error) from error
    if engine.zero_optimization_stage() == 0:
        base.state.clear()
    if engine.optimizer is base:  # in float32 without ZeRO; the optimizers of DeepSpeed do so by themselves
        leave_out_nonfinite_steps(base)
    return engine


def set_learning_rate(engine: Any, rate: float, *, head_only: bool = False) -> None:
    """Use `rate` for the coming optimizer step, or each layer's share of it; `head_only`: 0 for the backbone.

    A rate of 0 keeps the decay of weights from those that have no gradient, too.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0) if group["in_head"] or not head_only else 0.0


def set_ema_decay(engine: Any, decay: float) -> None:
    """Have the coming optimizer step leave this share of the moving average of the weights."""
    for group in engine.optimizer.param_groups:
        group["ema_decay"] = decay


def restart_optimizer(engine: Any) -> None:
    """Forget the gradients so far, as a new optimizer would; the average of the weights goes on."""
    for state in engine.basic_optimizer.state.values():
        for name, value in state.items():
            if name != ema.KEY:
                value.zero_()


def gradient_norm(engine: Any) -> float | None:
    """The global norm of the last step's gradients before clipping; None where the engine does not know it."""
    norm = engine.get_global_grad_norm()
    return None if norm is None or not math.isfinite(float(norm)) else float(norm)


def loss_scale(engine: Any) -> float | None:
    """What losses are multiplied with lest small gradients vanish in float16; None in other precisions."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None


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


def full_averaged_weights(engine: Any) -> dict[str, torch.Tensor]:
    """`full_weights` of the moving average, where the optimizer keeps one; else of the weights themselves."""
    with ema.averages_as_weights(engine.basic_optimizer):
        return full_weights(engine)


def masters_without_zero(optimizer: Any) -> dict[torch.Tensor, torch.Tensor]:
    """Parameter → its float32 master, which DeepSpeed keeps in lists where there is no ZeRO; empty under ZeRO."""
    if not isinstance(optimizer, FP16_UnfusedOptimizer):  # its name notwithstanding, it serves bf16 too
        return {}
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {parameter: master for low, high in groups for parameter, master in zip(low, high, strict=True)}


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu().clone()
    return tensor.float() if tensor.is_floating_point() else tensor
