"""Preflight: memory, limits, clock, fabric and names of a node. Standard library only.

Source of the fabric's files: the kernel's Documentation/ABI/stable/sysfs-class-infiniband.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitrain.launcher.checks.finding import Check, Finding, fail, ok, unknown, warn
from submitrain.launcher.checks.node_request import NodeRequest

CHECK_S = 15.0
REACH_S = 3.0
GIB = 2**30
MIB = 2**20
LEAST_SHM_BYTES = 64 * MIB
"""Docker's default: loader processes and NCCL have failed with it."""
GOOD_SHM_BYTES = GIB
GOOD_MEMLOCK_BYTES = 64 * GIB
FILES_PER_RANK = 8
"""Sockets to each peer in every process group, and files; on top of what a process needs anyway."""
FILES_ANYWAY = 256
CLOCK_WARN_S = 2.0
CLOCK_FAIL_S = 60.0
"""munge refuses messages after 300 s; times in event files are of no use long before."""
INFINIBAND = Path("/sys/class/infiniband")


def system_checks(request: NodeRequest) -> list[Check]:
    """The checks of this file."""
    return [
        Check("node.shm", read_shared_memory, CHECK_S),
        Check("node.memlock", read_locked_memory, CHECK_S),
        Check("node.open_files", lambda: open_files(_limit("NOFILE"), request), CHECK_S),
        Check("node.fabric", lambda: fabric(read_ports()), CHECK_S),
        Check("node.name", read_name, CHECK_S),
        Check("node.reach", lambda: reach(request, *try_hosts(request)), CHECK_S),
    ]


def read_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Write into ``/dev/shm``, and ask for its size."""
    stat = os.statvfs(folder)
    probe, error = folder / f"submitrain-preflight-{os.getpid()}", ""
    try:
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as problem:
        error = problem.strerror or str(problem)
    return shared_memory(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize, error)


def shared_memory(total_bytes: int, free_bytes: int, write_error: str = "") -> Finding:
    """``/dev/shm``: loader processes hand over batches in it, NCCL copies through it."""
    id, told = "node.shm", f"{free_bytes / GIB:.2f} of {total_bytes / GIB:.2f} GiB free"
    remedy = "enlarge it: mount -o remount,size=50% /dev/shm; in containers --shm-size or a mount"
    if write_error:
        return fail(id, f"cannot be written: {write_error} ({told})", remedy)
    if free_bytes < LEAST_SHM_BYTES:
        return fail(id, f"{told}, {LEAST_SHM_BYTES // MIB} MiB are the least", remedy)
    if free_bytes < GOOD_SHM_BYTES:
        return warn(id, f"{told}: loader processes may run out of it", remedy)
    return ok(id, told)


def _limit(name: str) -> float:
    """A soft limit of this process (getrlimit(2)); infinity for none."""
    limit = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def read_locked_memory() -> Finding:
    """Ask for the limit, and whether there is a device that registers memory."""
    return locked_memory(_limit("MEMLOCK"), rdma=any(INFINIBAND.glob("*")))


def locked_memory(limit_bytes: float, *, rdma: bool) -> Finding:
    """RDMA registers memory, which counts as locked (ibv_reg_mr(3)); nothing else here does."""
    id = "node.memlock"
    told = "unlimited" if limit_bytes == float("inf") else f"{limit_bytes / MIB:.0f} MiB"
    if not rdma:
        return ok(id, f"{told}; no RDMA device here")
    if limit_bytes >= GOOD_MEMLOCK_BYTES:
        return ok(id, told)
    return fail(
        id,
        f"{told}, and RDMA registers its buffers: NCCL falls back or fails",
        "LimitMEMLOCK=infinity for slurmd, PropagateResourceLimitsExcept=MEMLOCK in slurm.conf",
    )


def open_files(limit: float, request: NodeRequest) -> Finding:
    """A rank holds sockets to every peer."""
    id, needed = "node.open_files", FILES_ANYWAY + FILES_PER_RANK * request.world_size
    if limit >= needed:
        return ok(id, "unlimited" if limit == float("inf") else f"{limit:.0f}")
    return fail(
        id,
        f"a task may open {limit:.0f} files, {request.world_size} ranks need about {needed}",
        "raise it: LimitNOFILE of slurmd, or `ulimit -n` in slurm.setup",
    )


@dataclass(frozen=True)
class Port:
    """One port of an InfiniBand or RoCE device, in the kernel's words."""

    name: str
    state: str
    """ACTIVE, DOWN, INIT, ARMED"""
    layer: str = ""
    rate: str = ""


def read_ports(root: Path = INFINIBAND) -> list[Port]:
    """Ports of this host's RDMA devices; none where the kernel lists no device.

    Raises:
        OSError: a port is there and does not tell its state.
    """

    def word(path: Path) -> str:
        return path.read_text().strip() if path.exists() else ""

    return [
        Port(
            name=f"{port.parent.parent.name}/{port.name}",
            state=(port / "state").read_text().strip().rpartition(":")[2].strip(),  # 4: ACTIVE
            layer=word(port / "link_layer"),
            rate=word(port / "rate"),
        )
        for port in sorted(root.glob("*/ports/*"))
    ]


def fabric(ports: Sequence[Port]) -> Finding:
    """At least one InfiniBand or RoCE port is up, where there are any."""
    id = "node.fabric"
    if not ports:
        return ok(id, "no InfiniBand or RoCE device here")
    active = [one for one in ports if one.state == "ACTIVE"]
    if not active:
        told = ", ".join(f"{one.name} {one.state}" for one in ports[:8])
        return fail(id, told, "report the node: its ports are down (ibstat, cables, switch)")
    return ok(id, f"{len(active)} of {len(ports)} ports are up, {active[0].rate}")


def read_name() -> Finding:
    """The host's own name has an address on it: gloo and user code look it up."""
    id, host = "node.name", socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        told = f"its own name {host} does not resolve there: {error.strerror or error}"
        return fail(id, told, f"a line for {host} in its /etc/hosts, or in DNS")
    return ok(id, f"{host} resolves")


def try_hosts(request: NodeRequest) -> tuple[str, dict[str, str]]:
    """By which of its names the first node answers here (or ""), and those by which it does not.

    It answers with its token; another host with the same address would not.
    """
    missed: dict[str, str] = {}
    for host in request.hosts if request.port else ():
        try:
            with socket.create_connection((host, request.port), timeout=REACH_S) as connection:
                connection.settimeout(REACH_S)
                said = connection.recv(len(request.token)).decode(errors="replace")
        except OSError as error:
            missed[host] = error.strerror or str(error) or type(error).__name__
            continue
        if said == request.token:
            return host, missed
        missed[host] = "another host answers"
    return "", missed


def reach(request: NodeRequest, reached: str, missed: Mapping[str, str]) -> Finding:
    """Where rank 0 will listen can be reached: by a name, or by an address."""
    id, tried = "node.reach", "; ".join(f"{host}: {why}" for host, why in missed.items())
    if not reached and not missed:
        return unknown(id, f"{request.asker} did not listen")
    if not reached:
        return fail(
            id,
            f"{request.asker} answers at none of its names ({tried})",
            "look for a firewall between the nodes; distributed.interface names the network",
        )
    return ok(id, f"by {reached}" + (f"; not by {tried}" if tried else ""))


def clock(ahead_s: float, asker: str) -> Finding:
    """Times of events are compared between nodes; judged by the first node."""
    id, remedy = "node.clock", "have its time service (chrony, ntpd) looked at"
    told = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} {asker}"
    if abs(ahead_s) > CLOCK_FAIL_S:
        return fail(id, told, remedy)
    if abs(ahead_s) > CLOCK_WARN_S:
        return warn(id, told, remedy)
    return ok(id, f"within {CLOCK_WARN_S:.0f} s of {asker}")


def clock_skew_s(sent: float, received: float, there: float) -> float:
    """Seconds that a clock is ahead for certain, when it showed ``there`` between two times here.

    Whatever the exchange took may hide a skew; it never makes one up.
    """
    if there > received:
        return there - received
    return min(0.0, there - sent)
