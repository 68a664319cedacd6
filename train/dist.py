"""Processes that find each other: rendezvous, process groups, the device and the mesh of a rank.

Rank 0 opens a store on a port that the system chooses and publishes its address in the folder of
this attempt; nobody needs a MASTER_PORT, and a late process of an older attempt meets nobody.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import structlog
import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from train.config.sections import DistributedConfig
from train.context import RankContext
from train.errors import ConfigError
from train.rendezvous import meet

log = structlog.get_logger(__name__)

REPLICATE, SHARD = "dp_replicate", "dp_shard"


@dataclass(frozen=True)
class World:
    """All ranks of this attempt as one of them sees them."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    """[replicas, shards] with names for HSDP, [shards] without."""
    control: dist.ProcessGroup
    """Small CPU tensors of the main thread: agreeing on tokens and stops, barriers."""
    checkpoints: dist.ProcessGroup
    """gloo, for the checkpointer alone: its thread must not share a group with this thread."""

    @property
    def replicas(self) -> int:
        """How many times the whole model exists."""
        return self.size // self.shards

    @property
    def shards(self) -> int:
        """Over how many ranks one copy of the model is spread."""
        return int(self.mesh[SHARD].size())

    @property
    def first_replica(self) -> bool:
        """Whether this rank's shard is counted when shards are summed up."""
        return self.replicas == 1 or self.mesh[REPLICATE].get_local_rank() == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)


def join(context: RankContext, settings: DistributedConfig) -> World:
    """Meet the other ranks of this attempt and form the groups that training needs.

    Raises:
        ConfigError: nccl without a GPU.
        RunError: the ranks did not find each other in time.
    """
    replicas = replica_count(settings, context.world_size)
    device = choose_device(settings.backend, context.local_rank)
    context.on_cpu = device.type == "cpu"
    store = meet(context, timeout_s=settings.timeout_s, interface=settings.interface)
    backend = connect(context, settings, store, device)
    timeout = timedelta(seconds=settings.timeout_s)
    everyone = dist.group.WORLD
    assert everyone is not None
    control = everyone if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
    return World(
        rank=context.rank,
        size=context.world_size,
        device=device,
        mesh=make_mesh(device, context.world_size, replicas),
        control=control,
        checkpoints=dist.new_group(backend="gloo", timeout=timeout),
    )


def connect(
    context: RankContext, settings: DistributedConfig, store: Store, device: torch.device
) -> str:
    """Form the default process group of all ranks; returns its backend."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("ranks", store),  # type: ignore[attr-defined]
        rank=context.rank,
        world_size=context.world_size,
        timeout=timedelta(seconds=settings.timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    return backend


def make_mesh(device: torch.device, world_size: int, replicas: int) -> DeviceMesh:
    """A mesh of one dimension (FSDP), or of two: replicate across, shard inside (HSDP)."""
    if replicas == 1:
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=(SHARD,))
    shape = (replicas, world_size // replicas)
    return init_device_mesh(device.type, shape, mesh_dim_names=(REPLICATE, SHARD))


def replica_count(settings: DistributedConfig, world_size: int) -> int:
    """Number of model copies. After the loss of a node fewer ranks go on, with fewer copies."""
    asked = settings.dp_replicate_size or 1
    replicas = math.gcd(asked, world_size)
    if replicas != asked:
        log.warning("fewer_replicas", asked=asked, world_size=world_size, replicas=replicas)
    return replicas


def choose_device(backend: Literal["auto", "gloo", "nccl"], local_rank: int) -> torch.device:
    """This rank's device: its GPU where there are GPUs (unless gloo is asked for), else the CPU.

    Raises:
        ConfigError: nccl was asked for and no GPU is visible.
    """
    if backend == "gloo" or (backend == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "distributed.backend: nccl needs a GPU, and torch sees none here "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}); "
            "use auto or gloo, or ask for GPUs with slurm.gpus_per_node"
        )
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def set_threads(local_world_size: int) -> int:
    """Share this host's cores among its ranks; returns the number of threads of this rank.

    The count is part of what makes a CPU run repeatable. OMP_NUM_THREADS, where set, is kept.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // local_world_size))
    return torch.get_num_threads()
