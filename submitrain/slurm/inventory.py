"""What a cluster offers to its user: partitions, GPUs, time limits, accounts. Asks Slurm (edge).

Text with pinned fields is parsed; whatever Slurm does not say is simply not known.
"""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass

from submitrain.config.types import parse_duration_s
from submitrain.slurm.client import Ask, ask, kill_wait_s

_SEPARATOR = "\x1f"
_SINFO = _SEPARATOR.join(("%R", "%a", "%l", "%D", "%c", "%m", "%G", "%P"))
_GPU = re.compile(r"gpu:(?:(?P<type>[A-Za-z][\w.-]*):)?(?P<count>\d+)")


@dataclass(frozen=True)
class Partition:
    """A partition, as its largest group of equal nodes shows it."""

    name: str
    up: bool
    default: bool
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int = 0
    gpu_type: str = ""
    max_s: int | None = None
    """Longest job in seconds; None = not limited, or not known."""


@dataclass(frozen=True)
class ClusterInventory:
    """Partitions in Slurm's order, and the user's accounts, the default one first."""

    partitions: tuple[Partition, ...] = ()
    accounts: tuple[str, ...] = ()
    kill_wait_s: int | None = None
    """Seconds between TERM and KILL there."""
    problem: str = ""
    """Why partitions are not known."""

    def best(self) -> Partition | None:
        """Where a training belongs: GPUs before none, then the default one, then the largest."""
        able = [one for one in self.partitions if one.up] or list(self.partitions)
        return max(able, key=lambda one: (one.gpus > 0, one.default, one.nodes), default=None)


def query_inventory(*, run: Ask = ask) -> ClusterInventory:
    """Ask sinfo, sacctmgr and scontrol; few calls, each with a time limit."""
    answer = run(["sinfo", "--noheader", f"--format={_SINFO}"])
    if answer.code != 0:
        return ClusterInventory(problem=answer.error or "sinfo said nothing")
    found = tuple(parse_sinfo(answer.out))
    return ClusterInventory(found, tuple(_accounts(run)), kill_wait_s=kill_wait_s(run=run))


def parse_sinfo(text: str) -> list[Partition]:
    """Partitions from lines of ``%R %a %l %D %c %m %G %P``; of several lines the largest group."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(_SEPARATOR)]
        if len(fields) != 8:
            continue
        one = _partition(fields)
        known = found.get(one.name)
        if known is None or (one.gpus, one.nodes) > (known.gpus, known.nodes):
            found[one.name] = one
    return list(found.values())


def _partition(fields: list[str]) -> Partition:
    name, state, limit, nodes, cpus, memory, gres, flagged = fields
    gpu = _GPU.search(gres)
    return Partition(
        name=name,
        up=state == "up",
        default=flagged.endswith("*"),
        nodes=_number(nodes),
        cpus=_number(cpus),
        memory_mb=_number(memory),
        gpus=int(gpu["count"]) if gpu else 0,
        gpu_type=(gpu["type"] or "") if gpu else "",
        max_s=_limit_s(limit),
    )


def _number(text: str) -> int:
    """``16+`` is what sinfo says of nodes with 16 and more."""
    match = re.match(r"\d+", text)
    return int(match.group()) if match else 0


def _limit_s(text: str) -> int | None:
    if text in ("infinite", "n/a", ""):
        return None
    try:
        return parse_duration_s(text)
    except ValueError:
        return None


def _accounts(run: Ask) -> list[str]:
    """Accounts that this user may charge; none where there is no accounting."""
    user, show = getpass.getuser(), ["sacctmgr", "--noheader", "--parsable2", "show"]
    answer = run([*show, "assoc", f"user={user}", "format=Account"])
    default = run([*show, "user", user, "format=DefaultAccount"])
    if answer.code != 0:
        return []
    first = default.out.split()[:1] if default.code == 0 else []
    return list(dict.fromkeys([*first, *answer.out.split()]))
