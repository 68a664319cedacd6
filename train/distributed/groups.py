"""How the ranks of an attempt meet, and the process groups, device and mesh of a rank.

Rank 0 opens a store on a port that the system chooses and publishes its address, by an atomic
rename, in the folder of this attempt: nobody needs a MASTER_PORT, and a late process of an older
attempt meets nobody.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import structlog
import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    Store,
    TCPStore,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from submitrain.config.sections import DistributedConfig
from submitrain.errors import ConfigError, RunError
from submitrain.network import LOOPBACK, chosen_interface, host_candidates, interface_addresses
from submitrain.run_folder import write_json_atomically
from submitrain.train.context import RankContext

log = structlog.get_logger(__name__)

POLL_S = 0.02
SLOWEST_POLL_S = 0.5
PROBE_S = 3.0
TOKEN_KEY = "submitrain/token"


def meet(
    context: RankContext,
    *,
    timeout_s: float,
    interface: str | None = None,
    path: Path | None = None,
) -> Store:
    """Open the store (rank 0) or find it (the others).

    Args:
        interface: ``distributed.interface``: the only network to use.
        path: where the address is published; default: in the attempt's folder.

    Raises:
        ConfigError: this host has no such interface.
        RunError: no address was published, or none of its hosts answered, in ``timeout_s``.
    """
    path = path or context.run_dir.rendezvous(context.attempt)
    timeout = timedelta(seconds=timeout_s)
    one_host = context.local_world_size == context.world_size
    if interface is not None and not one_host:
        # gloo and NCCL use this one alone, unless the user has chosen for one of them.
        name = chosen_interface(interface, interface_addresses())
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": no other with this prefix
    if context.rank == 0:
        hosts = [LOOPBACK] if one_host else host_candidates(interface)
        store, own = _open_store(path, context.attempt, hosts, timeout)
    else:
        store, own = _find_store(path, time.monotonic() + timeout_s, timeout)
    if not one_host:
        _name_gloo_interface(own)
    return store


def _open_store(
    path: Path, attempt: int, hosts: list[str], timeout: timedelta
) -> tuple[Store, str]:
    """A store on this host, its address published, and this host's own address.

    It cannot know by which of ``hosts`` the others reach it; the token proves to a peer that it
    reached this store and not another host with the same private address.
    """
    store = TCPStore(LOOPBACK, 0, None, is_master=True, timeout=timeout, wait_for_workers=False)
    token = secrets.token_hex(8)
    store.set(TOKEN_KEY, token)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(
        path, {"hosts": hosts, "port": store.port, "token": token, "attempt": attempt}
    )
    return store, next((host for host in hosts if _is_outer_ipv4(host)), LOOPBACK)


def _find_store(path: Path, deadline: float, timeout: timedelta) -> tuple[Store, str]:
    """Rank 0's store, and this host's own address on the way there."""
    address = _wait_for_address(path, deadline)
    hosts, port = address["hosts"], address["port"]
    while True:
        for host in hosts:
            own = _reachable_from(host, port)
            if own is None:
                continue
            store = TCPStore(host, port, is_master=False, timeout=timeout)
            if store.check([TOKEN_KEY]) and store.get(TOKEN_KEY).decode() == address["token"]:
                return store, own
            log.warning("rendezvous_wrong_host", host=host, port=port)
        if time.monotonic() > deadline:
            raise RunError(
                f"rendezvous: rank 0 answers at none of {hosts}, port {port}"
                "; a firewall between the nodes, or rank 0 ended already"
            )
        time.sleep(SLOWEST_POLL_S)


def _wait_for_address(path: Path, deadline: float) -> dict[str, Any]:
    pause = POLL_S
    while True:
        with suppress(FileNotFoundError):
            address: dict[str, Any] = json.loads(path.read_text())
            return address
        if time.monotonic() > deadline:
            raise RunError(
                f"rendezvous: rank 0 published no address in {path}; it did not start, or this "
                "node does not see the same run folder (runs_dir must be on a shared file system)"
            )
        time.sleep(pause)
        pause = min(pause * 1.3, SLOWEST_POLL_S)
        with suppress(OSError):
            list(path.parent.iterdir())  # NFS: makes a cached "no such file" go away


def _reachable_from(host: str, port: int) -> str | None:
    """This host's own address on the way to ``host``, or None if nothing answers there."""
    try:
        with socket.create_connection((host, port), timeout=PROBE_S) as connection:
            return str(connection.getsockname()[0])
    except OSError:
        return None


def _name_gloo_interface(address: str) -> None:
    """Let gloo use the interface of ``address`` where the host's own name means loopback.

    Debian maps a host's name to 127.0.1.1; gloo would then offer loopback to other hosts.
    Elsewhere, and where the user has chosen, nothing is set.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError):
        answers = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        if not all(str(answer[4][0]).startswith("127.") for answer in answers):
            return
    for name, own in interface_addresses().items():
        if own == address and not own.startswith("127."):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            log.info("gloo_interface", interface=name, why="host name resolves to loopback")


def _is_outer_ipv4(host: str) -> bool:
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return not host.startswith("127.")


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
    # One dimension (FSDP), or two: replicate across, shard inside (HSDP).
    names = (SHARD,) if replicas == 1 else (REPLICATE, SHARD)
    shape = (context.world_size,) if replicas == 1 else (replicas, context.world_size // replicas)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    timeout = timedelta(seconds=settings.timeout_s)
    everyone = dist.group.WORLD
    assert everyone is not None
    control = everyone if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
    return World(
        rank=context.rank,
        size=context.world_size,
        device=device,
        mesh=mesh,
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
