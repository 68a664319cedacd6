"""Filling a sharded model: random weights, the same at any world size, or pretrained ones.

No rank holds the whole model, except rank 0 where the files' names need transformers' conversion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from submitrain.config.sections import ModelConfig
from submitrain.errors import ConfigError
from submitrain.train.checkpoint.storage import StoredTensors
from submitrain.train.distributed.groups import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


log = structlog.get_logger(__name__)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Create modules with shapes for parameters and real values for buffers.

    ``torch.device("meta")`` would leave non-persistent buffers (rotary ``inv_freq``) as garbage:
    no checkpoint contains them.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(self, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def allocate(model: nn.Module, device: torch.device) -> None:
    """Give meta parameters (their local shards) memory on ``device``; move buffers there."""
    model._apply(  # type: ignore[no-untyped-call]
        lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device)
    )


def seed_of(seed: int, *parts: object) -> int:
    """A 63-bit seed that is a pure function of the run's seed and what it is for."""
    text = json.dumps([seed, *map(str, parts)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@torch.no_grad()
def initialise(model: nn.Module, twin: PreTrainedModel, seed: int) -> None:
    """Random weights as the model's own ``_init_weights`` gives them, the same at any world size.

    ``twin`` is the same model, unsharded and on the meta device: it is filled one block at a time,
    each from a seed of its own, and every rank keeps its part.
    """
    targets = named_targets(model)
    done: set[int] = set()
    for name, unit, recurse in _units(twin):
        own = [targets[n] for n, _ in unit.named_parameters(prefix=name, recurse=recurse)]
        if all(id(target) in done for target in own):  # a tied head
            continue
        done.update(map(id, own))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "init", name))
            _fill(unit, twin, recurse=recurse)
        for inner, value in unit.named_parameters(prefix=name, recurse=recurse):
            copy_shard(targets[inner], value)
        unit.to_empty(device="meta", recurse=recurse)


def _units(twin: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """The members of module lists whole (parents may initialise children), the rest one by one."""
    blocks = {
        id(block): name
        for name, holder in twin.named_modules()
        if isinstance(holder, nn.ModuleList)
        for block in holder
    }
    inside: set[int] = set()
    for name, module in twin.named_modules():
        if id(module) in inside:
            continue
        if id(module) in blocks:
            inside.update(id(m) for m in module.modules())
            yield name, module, True
        elif any(True for _ in module.parameters(recurse=False)):
            yield name, module, False


def _fill(unit: nn.Module, twin: PreTrainedModel, *, recurse: bool) -> None:
    for module in unit.modules() if recurse else [unit]:
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device="cpu")
            setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        module._is_hf_initialized = False  # type: ignore[assignment]
    children_first = reversed(list(unit.modules())) if recurse else iter([unit])
    for module in children_first:
        twin._init_weights(module)


def named_targets(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by their Hugging Face names; a tied one has several.

    LoRA calls a wrapped parameter ``x.base_layer.weight``. A buffer (such as a router's correction
    bias) that the files lack keeps the value that the model's constructor gave it.
    """
    return {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def copy_shard(target: Tensor, value: Tensor) -> None:
    """Copy this rank's part of the full ``value`` into the sharded ``target``."""
    if not isinstance(target, DTensor):
        target.copy_(value)
        return
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    part = value
    for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
        part = part.narrow(dim, min(start, part.shape[dim]), length)
    target.to_local().copy_(part)


def model_folder(settings: ModelConfig, world: World, local_rank: int) -> Path:
    """The model's files on this host; one rank of each host downloads a hub model.

    Raises:
        ConfigError: neither a folder nor a model that the hub or its cache knows.
    """
    name = settings.pretrained_model_name_or_path
    assert name is not None
    if Path(name).is_dir():
        return Path(name)
    for turn in (True, False):
        if turn == (local_rank == 0):
            folder = _download(name, settings.revision)
        world.barrier()
    return folder


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision))
    except Exception as error:
        raise ConfigError(
            f"model.pretrained_model_name_or_path: {name!r} is no folder here and cannot be "
            f"downloaded ({type(error).__name__}: {error}); check the name, HF_TOKEN for gated "
            "models, and HF_HOME for a cache filled where there is a network"
        ) from error
    return folder


def load_pretrained(model: nn.Module, folder: Path, settings: ModelConfig, world: World) -> None:
    """Load weights from ``folder``: each rank reads its slices where the names allow it.

    Raises:
        ConfigError: a weight that the model needs is not in the files.
    """
    stored = StoredTensors(folder, safetensors=True) if any(folder.glob("*.safetensors")) else None
    wanted = {name: p for name, p in named_targets(model).items() if ".lora_" not in name}
    if stored is not None:
        found = {name: target for name, target in wanted.items() if name in stored.names}
        filled = {id(target) for target in found.values()}  # a tied one has several names
        needed = (target for target in wanted.values() if isinstance(target, nn.Parameter))
        if all(id(target) in filled for target in needed):
            stored.read(found)
            return
    log.info("load_on_rank_0", why="the files' names differ from the model's", folder=str(folder))
    source = _read_whole(folder, settings) if world.rank == 0 else {}
    _broadcast(wanted, source, world)


def _read_whole(folder: Path, settings: ModelConfig) -> dict[str, Tensor]:
    """The whole model as transformers reads it, with its own names."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=settings.trust_remote_code
    )
    return dict(model.state_dict())


@torch.no_grad()
def _broadcast(targets: Mapping[str, Tensor], source: Mapping[str, Tensor], world: World) -> None:
    """Send rank 0's tensors one at a time; every rank keeps its shard."""
    problem: list[Any] = [sorted(set(targets) - set(source))[:5] if world.rank == 0 else None]
    dist.broadcast_object_list(problem, src=0, group=world.control)
    if problem[0]:
        raise ConfigError(
            f"model.pretrained_model_name_or_path: no weights for {', '.join(problem[0])}"
        )
    for name, target in targets.items():
        full = torch.empty(target.shape, dtype=target.dtype)
        if world.rank == 0:
            full.copy_(source[name])
        dist.broadcast(full, src=0, group=world.control)
        copy_shard(target, full)
