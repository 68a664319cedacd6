"""This host's network interfaces, and by which of its names and addresses others may reach it.

Imports no torch: the preflight asks the same on every node before a rank starts.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from submitrain.errors import ConfigError

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915
_ROUTES = Path("/proc/net/route")
_VIRTUAL = re.compile(r"^(docker|br-|virbr|veth|cni|flannel|cali|vxlan|tun|tap|wg|podman|lxc)")
"""Interfaces that lead to containers and tunnels of this host, with the same address on every."""


def interface_addresses() -> dict[str, str]:
    """IPv4 address of every network interface that has one (Linux ioctl, netdevice(7))."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def by_likelihood(addresses: Mapping[str, str], default: str) -> list[str]:
    """Names of the interfaces that others may come by: that of the default route first, those of
    containers and tunnels last, loopback not at all. Pure.
    """
    names = [name for name, address in addresses.items() if not address.startswith("127.")]
    return sorted(names, key=lambda name: (bool(_VIRTUAL.match(name)), name != default))


def default_interface(routes: str) -> str:
    """Interface of the default route with the lowest metric, by ``/proc/net/route``; or empty."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    found = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == row[7] == "0" * 8]
    return min(found)[1] if found else ""


def host_candidates(interface: str | None = None) -> list[str]:
    """Names and addresses by which other hosts may reach this one, the most likely first.

    With ``interface`` (one name, or several with commas) only the address of the first one that
    this host has.

    Raises:
        ConfigError: it has none of them.
    """
    addresses = interface_addresses()
    if interface is not None:
        return [addresses[chosen_interface(interface, addresses)]]
    names = by_likelihood(addresses, _default())
    return [socket.gethostname(), *(addresses[name] for name in names), LOOPBACK]


def chosen_interface(wanted: str, addresses: Mapping[str, str]) -> str:
    """The first of the wanted interfaces that has an address here.

    Raises:
        ConfigError: none has.
    """
    for name in (one.strip() for one in wanted.split(",")):
        if name in addresses:
            return name
    there = ", ".join(f"{name} ({address})" for name, address in addresses.items())
    raise ConfigError(
        f"distributed.interface: expected an interface with an IPv4 address on "
        f"{socket.gethostname()}, got {wanted}; there are {there or 'none'}; name one of those, "
        "several with commas where nodes differ, or remove the key"
    )


def _default() -> str:
    try:
        return default_interface(_ROUTES.read_text())
    except OSError:
        return ""
