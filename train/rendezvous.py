"""How the ranks of an attempt meet: an address published in the run folder. No port is agreed on.

The file appears by atomic rename in the attempt's own folder, so it is whole and never an old one.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from train.context import RankContext
from train.errors import RunError
from train.interfaces import LOOPBACK, chosen_interface, host_candidates, interface_addresses
from train.rundir import write_json_atomically

log = structlog.get_logger(__name__)

POLL_S = 0.02
SLOWEST_POLL_S = 0.5
PROBE_S = 3.0
TOKEN_KEY = "submitrain/token"


@dataclass(frozen=True)
class Address:
    """Where rank 0 listens. Several hosts, since it cannot know by which name others reach it."""

    hosts: tuple[str, ...]
    port: int
    token: str
    """Proof that a peer reached this store and not another host with the same private address."""


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
    if interface is not None and not _one_host(context):
        use_interface(interface)
    if context.rank == 0:
        return _open(path, context, timeout, interface)
    deadline = time.monotonic() + timeout_s
    address = _wait_for_address(path, deadline)
    return _connect(address, deadline, timeout, alone=_one_host(context))


def _one_host(context: RankContext) -> bool:
    return context.local_world_size == context.world_size


def use_interface(wanted: str) -> None:
    """Let gloo and NCCL use this interface alone, unless the user has chosen for one of them.

    Raises:
        ConfigError: this host has no such interface.
    """
    name = chosen_interface(wanted, interface_addresses())
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": this name, and no prefix of it


def _open(path: Path, context: RankContext, timeout: timedelta, interface: str | None) -> Store:
    store = TCPStore(LOOPBACK, 0, None, is_master=True, timeout=timeout, wait_for_workers=False)
    token = secrets.token_hex(8)
    store.set(TOKEN_KEY, token)
    hosts = [LOOPBACK] if _one_host(context) else host_candidates(interface)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(
        path,
        {"hosts": hosts, "port": store.port, "token": token, "attempt": context.attempt},
    )
    if not _one_host(context):
        _name_gloo_interface(next((h for h in hosts if _is_ipv4(h)), LOOPBACK))
    return store


def _wait_for_address(path: Path, deadline: float) -> Address:
    pause = POLL_S
    while True:
        with suppress(FileNotFoundError):
            value = json.loads(path.read_text())
            return Address(tuple(value["hosts"]), value["port"], value["token"])
        if time.monotonic() > deadline:
            raise RunError(
                f"rendezvous: rank 0 published no address in {path}; it did not start, or this "
                "node does not see the same run folder (runs_dir must be on a shared file system)"
            )
        time.sleep(pause)
        pause = min(pause * 1.3, SLOWEST_POLL_S)
        with suppress(OSError):
            list(path.parent.iterdir())  # NFS: makes a cached "no such file" go away


def _connect(address: Address, deadline: float, timeout: timedelta, *, alone: bool) -> Store:
    while True:
        for host in address.hosts:
            own = _reachable_from(host, address.port)
            if own is None:
                continue
            store = TCPStore(host, address.port, is_master=False, timeout=timeout)
            if store.check([TOKEN_KEY]) and store.get(TOKEN_KEY).decode() == address.token:
                if not alone:
                    _name_gloo_interface(own)
                return store
            log.warning("rendezvous_wrong_host", host=host, port=address.port)
        if time.monotonic() > deadline:
            raise RunError(
                f"rendezvous: rank 0 answers at none of {list(address.hosts)}, port {address.port}"
                "; a firewall between the nodes, or rank 0 ended already"
            )
        time.sleep(SLOWEST_POLL_S)


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
    if "GLOO_SOCKET_IFNAME" in os.environ or not _name_is_loopback():
        return
    for name, own in interface_addresses().items():
        if own == address and not own.startswith("127."):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            log.info("gloo_interface", interface=name, why="host name resolves to loopback")


def _name_is_loopback() -> bool:
    try:
        answers = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        return True
    return all(str(answer[4][0]).startswith("127.") for answer in answers)


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return not host.startswith("127.")
