"""Free TCP ports that stay free: taken from below the range of outgoing connections."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST_PORT = 10_240
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Return that many different ports on which nobody listens now.

    Binding port 0 would give ports that any outgoing connection may take while a daemon is being
    restarted, so the ports are drawn at random below the kernel's ephemeral range and tried. Two
    clusters that start at once rarely draw the same one; whoever loses starts again with others.
    """
    candidates = random.SystemRandom().sample(range(_LOWEST_PORT, _lowest_ephemeral_port()), 2000)
    free: list[int] = []
    for port in candidates:
        if len(free) == count:
            break
        if _is_free(port):
            free.append(port)
    if len(free) < count:
        raise OSError(f"found {len(free)} free TCP ports of the {count} that were needed")
    return free


def _lowest_ephemeral_port() -> int:
    try:
        lowest = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32_768
    return max(lowest, _LOWEST_PORT + 4000)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
