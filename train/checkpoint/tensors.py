"""Model and optimizer as flat maps from names to tensors, and the optimizer back from one.

Names are fully qualified parameter names, not indices: they mean the same at every world size, with
HSDP and on a single rank.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from submitrain.errors import CheckpointError

_WRAPPER_PREFIXES = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
_EXECUTION_CHOICES = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})
"""Keys of a parameter group that say how to compute here, and not what was learned."""

Scalars = dict[str, Any]


def clean_name(name: str) -> str:
    """A parameter's name without what torch.compile and checkpoint wrappers put into it."""
    for prefix in _WRAPPER_PREFIXES:
        name = name.replace(prefix, "")
    return name


def adapter_only(model: nn.Module) -> bool:
    """Whether only a PEFT adapter is trained, so that base weights are not saved."""
    return getattr(model, "peft_config", None) is not None


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name; a tied one appears once.

    ``state_dict`` is asked because it makes FSDP put its sharded parameters back in place. With
    PEFT only what is trained is returned.
    """
    only_trained = adapter_only(model)
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor) or id(tensor) in seen:
            continue
        if only_trained and not tensor.requires_grad:
            continue
        seen.add(id(tensor))
        tensors[clean_name(name)] = tensor.detach()
    return tensors


def parameter_names(model: nn.Module) -> dict[torch.Tensor, str]:
    """Every parameter's name; a tied one has its first name."""
    model.state_dict(keep_vars=True)
    return {parameter: clean_name(name) for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's state by parameter name."""

    tensors: dict[str, torch.Tensor]
    """``<parameter>/<entry>`` to tensor; sharded as the parameter is."""
    scalars: Scalars
    """``groups``: the parameter groups' names and numbers; ``state``: entries that are numbers."""


def group_values(optimizer: torch.optim.Optimizer) -> list[Scalars]:
    """Numbers of each parameter group: what was configured, and what training made of it."""
    groups = []
    for group in optimizer.param_groups:
        values = {
            key: value.item() if isinstance(value, torch.Tensor) else value
            for key, value in group.items()
            if key not in _EXECUTION_CHOICES
        }
        groups.append({key: value for key, value in values.items() if _is_plain(value)})
    return groups


def optimizer_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    configured: Sequence[Scalars] | None = None,
) -> OptimizerState:
    """State of ``optimizer`` by parameter name; an optimizer that has made no step has little.

    Of the groups' numbers those are state that differ from ``configured``, what they were before
    training; the others are configuration, and at a resume the configuration of then counts. None
    means that this is not known: then all of them are kept.

    Raises:
        CheckpointError: an entry is neither a tensor nor a number.
    """
    names = parameter_names(model)
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            name = names[parameter]
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{key}"] = value
            elif isinstance(value, int | float):
                numbers.setdefault(name, {})[key] = value
            elif value is not None:
                raise CheckpointError(
                    f"optimizer {type(optimizer).__name__}: state {key!r} of {name} is a "
                    f"{type(value).__name__}; only tensors and numbers can be saved: use another "
                    "optimizer"
                )
    now = group_values(optimizer)
    before = configured or [{} for _ in now]
    groups = [
        {
            "parameters": [names[parameter] for parameter in group["params"]],
            "values": {k: v for k, v in new.items() if k not in old or old[k] != v},
        }
        for group, new, old in zip(optimizer.param_groups, now, before, strict=True)
    ]
    return OptimizerState(tensors, {"groups": groups, "state": numbers})


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, int | float | bool)


@torch.no_grad()
def prepare_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    tensor_names: Collection[str],
    scalars: Scalars,
    configured: Sequence[Scalars],
) -> dict[str, torch.Tensor]:
    """Give ``optimizer`` exactly the entries that were stored; returns the tensors to fill.

    Numbers are restored here, over those that are ``configured``. Where entries do not exist yet
    the optimizer makes one trial step on zero gradients, so that they get the shape, sharding and
    device that it wants. That may touch parameters: load them afterwards.

    Raises:
        CheckpointError: parameter groups or entries are not the stored ones.
    """
    names = parameter_names(model)
    _check_groups(optimizer, names, scalars["groups"])
    if set(tensor_names) - _entries(optimizer, names).keys():
        _trial_step(optimizer)
    found = _entries(optimizer, names)
    if missing := sorted(set(tensor_names) - found.keys()):
        raise CheckpointError(
            f"optimizer {type(optimizer).__name__} has no place for {len(missing)} stored entries, "
            f"the first is {missing[0]}: is it another optimizer than the one that was saved?"
        )
    for parameter in list(optimizer.state):
        name = names[parameter]
        kept = {
            key: value
            for key, value in optimizer.state[parameter].items()
            if f"{name}/{key}" in tensor_names
        }
        optimizer.state[parameter] = {**kept, **scalars["state"].get(name, {})}
        if not optimizer.state[parameter]:
            del optimizer.state[parameter]
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        _set_values(group, values)
    for group, saved in zip(optimizer.param_groups, scalars["groups"], strict=True):
        _set_values(group, saved["values"])
    return {name: found[name] for name in tensor_names}


def _entries(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]
) -> dict[str, torch.Tensor]:
    return {
        f"{names[parameter]}/{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
        if isinstance(value, torch.Tensor)
    }


def _check_groups(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str], stored: list[Scalars]
) -> None:
    here = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    there = [group["parameters"] for group in stored]
    if here == there:
        return
    flat_here = {name for group in here for name in group}
    flat_there = {name for group in there for name in group}
    difference = sorted(flat_here ^ flat_there)
    raise CheckpointError(
        f"optimizer: {len(here)} parameter groups of sizes {[len(group) for group in here]} here, "
        f"{[len(group) for group in there]} in the checkpoint"
        + (f"; only on one side: {', '.join(difference[:3])}" if difference else "")
        + ": was the model, PEFT or the optimizer changed since? start a new run for that"
    )


def _set_values(group: dict[str, Any], values: Scalars) -> None:
    for key, value in values.items():
        if isinstance(group.get(key), torch.Tensor):
            group[key].fill_(value)
        else:
            group[key] = tuple(value) if isinstance(value, list) else value


def _trial_step(optimizer: torch.optim.Optimizer) -> None:
    """One step on zero gradients at learning rate zero; random numbers stay as they were.

    The same idea as torch's ``get_optimizer_state_dict``; what it may do to parameters does not
    matter because they are loaded next.
    """
    kept = [copy.copy(group) for group in optimizer.param_groups]
    parameters = [p for group in kept for p in group["params"] if p.requires_grad]
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        rate = group.get("lr")
        group["lr"] = torch.zeros_like(rate) if isinstance(rate, torch.Tensor) else 0.0
    local = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
    gpus = {t.device.index for t in local if t.device.type == "cuda" and t.device.index is not None}
    with torch.random.fork_rng(devices=sorted(gpus)):
        optimizer.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group, before in zip(optimizer.param_groups, kept, strict=True):
        group.update(before)
