"""The training state of a DeepSpeed engine by the names of the student's parameters.

DeepSpeed's own checkpoints are cut up as the ranks and the ZeRO stage have it. Here each parameter is whole: its
float32 weight, and what the optimizer keeps of it; so any number of ranks at any stage goes on from it, exactly.
"""

from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

from xmodal.training import ema
from xmodal.training.engine import masters_without_zero

WEIGHT = "weight"
"""The kind of state that every parameter has; the others are the optimizer's, such as `exp_avg` and `ema`."""
_FLAT_MASTERS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""What a rank holds of all float32 weights: in DeepSpeed's optimizers for ZeRO 3, 1 and 2, and 1 with float32 sums."""
_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def gather_parameters(engine: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Each parameter's `kind, name, value`, whole and in float32, one after the other; all ranks go through all."""
    base, masters = engine.basic_optimizer, masters_without_zero(engine.optimizer)
    kinds = _moment_kinds(base)
    _link_moments(engine)
    for name, parameter in engine.module.named_parameters():
        yield WEIGHT, name, _weight(parameter, masters)
        for kind in kinds if parameter.requires_grad else []:
            if _is_whole(engine):
                # In float32, what never had a gradient, such as a backbone that is frozen as yet, has no state.
                state = base.state.get(masters.get(parameter, parameter), {})
                if kind in state:
                    yield kind, name, state[kind].detach()
            else:
                yield kind, name, safe_get_full_optimizer_state(parameter, kind)


def restore_parameters(
    engine: Any,
    kinds: set[str],
    read: Callable[[str, str, torch.Size], torch.Tensor | None],
    numbers: dict[str, float | int],
) -> None:
    """Set what `gather_parameters` and `optimizer_numbers` gave; all ranks call it.

    `read(kind, name, shape)` returns the whole value, the same on all ranks, or None where there is none.
    """
    base, masters = engine.basic_optimizer, masters_without_zero(engine.optimizer)
    moments = sorted(kinds - {WEIGHT})
    if moments:
        _make_moments(engine, base, moments, numbers)
    is_zero3 = hasattr(engine.optimizer, "checkpoint_event_prologue")
    if is_zero3:
        engine.optimizer.checkpoint_event_prologue()
    for name, parameter in engine.module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        weight = read(WEIGHT, name, shape)
        assert weight is not None, f"{name}: the checkpoint does not hold it"
        _set_weight(parameter, weight, masters)
        for kind in moments if parameter.requires_grad else []:
            value = read(kind, name, shape)
            if value is None and kind == ema.KEY:
                value = weight  # it has never stepped
            if value is None:
                continue
            if _is_whole(engine):
                base.state[masters.get(parameter, parameter)][kind].copy_(value)
            elif hasattr(parameter, "ds_id"):
                safe_set_local_optimizer_state(parameter, _own_part(parameter, value), kind)
            else:
                safe_set_full_optimizer_state(parameter, value, kind)
    _round_weights(engine)
    if is_zero3:
        engine.optimizer.checkpoint_event_epilogue()


def optimizer_numbers(engine: Any) -> dict[str, float | int]:
    """What the optimizer keeps as one number for all parameters: `step`, those done since it began (anew)."""
    for state in engine.basic_optimizer.state.values():
        values = {name: value for name, value in state.items() if not _is_moment(value)}
        return {name: value.item() if torch.is_tensor(value) else value for name, value in values.items()}
    return {}


def loss_scale_state(engine: Any) -> dict[str, float]:
    """What a dynamic loss scale (float16) has learned; empty where there is none."""
    scaler = _dynamic_scaler(engine)
    return {name: getattr(scaler, name) for name in _SCALE if hasattr(scaler, name)}


def restore_loss_scale(engine: Any, state: dict[str, float]) -> None:
    """Set what `loss_scale_state` gave, as far as this engine has a dynamic loss scale."""
    scaler = _dynamic_scaler(engine)
    for name, value in state.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


def _dynamic_scaler(engine: Any) -> Any:
    for scaler in (getattr(engine.optimizer, name, None) for name in ("loss_scale_config", "loss_scaler")):
        if getattr(scaler, "dynamic", False) or getattr(scaler, "dynamic_loss_scale", False):
            return scaler
    return None


def _is_whole(engine: Any) -> bool:
    """Whether each rank holds all of the state: without ZeRO."""
    return engine.zero_optimization_stage() == 0


def _moment_kinds(base: Any) -> list[str]:
    """Names of the optimizer's state that has a parameter's shape; none before its first step."""
    for state in base.state.values():
        return sorted(name for name, value in state.items() if _is_moment(value))
    return []


def _is_moment(value: Any) -> bool:
    return torch.is_tensor(value) and value.ndim > 0


def _make_moments(engine: Any, base: Any, kinds: list[str], numbers: dict[str, float | int]) -> None:
    """Have the optimizer hold the state that it would make at its first step."""
    flat = next((getattr(engine.optimizer, name) for name in _FLAT_MASTERS if hasattr(engine.optimizer, name)), None)
    held = flat if flat is not None else [one for group in base.param_groups for one in group["params"]]
    is_fused = base.defaults.get("fused", False)
    for one in held:
        base.state[one] = {kind: torch.zeros_like(one, requires_grad=False) for kind in kinds}
        for name, value in numbers.items():
            # torch's optimizers count their steps in a float32 tensor each, on the device if they are fused; what is an
            # int was one.
            device = one.device if is_fused else "cpu"
            base.state[one][name] = torch.tensor(value, device=device) if isinstance(value, float) else value
    _link_moments(engine)


def _link_moments(engine: Any) -> None:
    """Have ZeRO 1 and 2 find the optimizer's state of all parameters.

    DeepSpeed does so when the first group of them has taken its first step, and the others have no state yet.
    """
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _weight(parameter: torch.nn.Parameter, masters: dict[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    master = masters[parameter] if parameter in masters else safe_get_full_fp32_param(parameter)
    if master is not None:
        return master.detach()
    # Frozen, or trained in float32 without ZeRO: the parameter itself is all there is.
    if hasattr(parameter, "ds_id"):
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().float().clone()
    return parameter.detach().float()


def _set_weight(parameter: torch.nn.Parameter, weight: torch.Tensor, masters: dict[torch.Tensor, torch.Tensor]) -> None:
    if parameter in masters:
        masters[parameter].data.copy_(weight)
    elif hasattr(parameter, "ds_id") and not parameter.requires_grad:
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(weight)
    elif hasattr(parameter, "ds_id"):
        safe_set_local_fp32_param(parameter, _own_part(parameter, weight))
    elif not hasattr(parameter, "_hp_mapping"):
        parameter.data.copy_(weight)
    else:
        safe_set_full_fp32_param(parameter, weight)


def _own_part(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a parameter under ZeRO 3, padded: DeepSpeed's own cut fails where it does not divide."""
    size = parameter.ds_tensor.numel()
    start = size * dist.get_rank()
    part = value.flatten()[start : start + size]
    return torch.nn.functional.pad(part, (0, size - len(part)))


def _round_weights(engine: Any) -> None:
    """Make the weights that the forward pass uses anew from those in float32."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for number in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
    else:
        for parameter, master in masters_without_zero(optimizer).items():
            parameter.data.copy_(master)
