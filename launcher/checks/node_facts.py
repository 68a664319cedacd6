"""What one node tells of itself. Standard library only: a task on every node imports this.

A group of facts that could not be had is ``Unknown``, with the reason: never a zero, never "fine".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

MARK = "@preflight "
"""Begins the one line of a node's output that is its answer."""
UNLIMITED = -1


@dataclass(frozen=True)
class Unknown:
    """A fact that could not be had."""

    why: str


@dataclass(frozen=True)
class SharedFolder:
    """The run folder as this node sees it; sizes in bytes."""

    path: str
    read_error: str = ""
    """Why what the first node wrote cannot be read here; empty: it can."""
    write_error: str = ""
    """Why nothing can be written; empty: it was written and flushed."""
    write_s: float = 0.0
    fs_type: str = ""
    free_bytes: int | None = None
    free_inodes: int | None = None
    seen: bool | None = None
    """Whether the first node read what this one wrote; None: it did not look."""


@dataclass(frozen=True)
class SharedMemory:
    """``/dev/shm``, in bytes."""

    total_bytes: int
    free_bytes: int
    write_error: str = ""


@dataclass(frozen=True)
class Limits:
    """Soft limits of a task (getrlimit(2)); -1 is unlimited."""

    memlock_bytes: int
    nofile: int
    rdma: bool
    """Whether there is a device that registers memory: /sys/class/infiniband."""


@dataclass(frozen=True)
class Software:
    """What must be the same everywhere."""

    python: str
    code: str
    """Hash of this program's own source files."""
    commit: str
    """Commit of the folder that the job was started from; empty outside a repository."""
    driver: str
    """Version of the GPU's kernel driver; empty where there is none."""
    kernel: str
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where the device does not say."""

    index: int
    name: str
    uncorrected: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    remap_failed: bool | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None


@dataclass(frozen=True)
class Xid:
    """An error that the NVIDIA driver wrote into the kernel's log."""

    code: int
    device: str
    line: str


@dataclass(frozen=True)
class NvLink:
    """One link between GPUs."""

    gpu: int
    link: int
    active: bool


@dataclass(frozen=True)
class Port:
    """One port of an InfiniBand or RoCE device."""

    name: str
    state: str
    """ACTIVE, DOWN, INIT, ARMED"""
    rate: str = ""


@dataclass(frozen=True)
class Names:
    """Whether names mean something here."""

    host: str
    own_error: str = ""
    """Why the host's own name does not resolve."""
    reached: str = ""
    """By which of its names or addresses the first node answers here."""
    missed: Mapping[str, str] = field(default_factory=dict)
    """Those by which it does not, and why."""


@dataclass(frozen=True)
class NodeFacts:
    """Everything that one node tells."""

    node: str
    shared: SharedFolder | Unknown
    shm: SharedMemory | Unknown
    limits: Limits | Unknown
    software: Software | Unknown
    gpus: tuple[Gpu, ...] | Unknown
    xids: tuple[Xid, ...] | Unknown
    nvlinks: tuple[NvLink, ...] | Unknown
    ports: tuple[Port, ...] | Unknown
    names: Names | Unknown
    clock: float | Unknown = field(default=Unknown("nobody compared it"))
    """Seconds that its clock is ahead of the first node's; what the exchange took is no skew."""


_ONE = {
    "shared": SharedFolder,
    "shm": SharedMemory,
    "limits": Limits,
    "software": Software,
    "names": Names,
}
_MANY = {"gpus": Gpu, "xids": Xid, "nvlinks": NvLink, "ports": Port}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Request:
    """What a node is asked, as JSON in one argument."""

    node: str
    folder: str
    """Shared folder in which both sides write a file."""
    token: str
    written: bool
    """Whether the first node could write its own file there."""
    hosts: tuple[str, ...] = ()
    port: int = 0
    """Where the first node answers with the token; 0: nowhere."""
    software: bool = True
    """Whether versions are wanted: there is somebody to compare them with."""

    def as_text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Request:
        """The same request again."""
        value = json.loads(text)
        return cls(**{**value, "hosts": tuple(value["hosts"])})


def as_line(facts: NodeFacts, now: float) -> str:
    """A node's answer as one line; ``now`` by its own clock, UTC seconds."""
    value = {name: _plain(getattr(facts, name)) for name in (*_ONE, *_MANY)}
    return MARK + json.dumps({"node": facts.node, "now": now, **value}) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Unknown):
        return {"unknown": value.why}
    if isinstance(value, tuple):
        return [asdict(one) for one in value]
    return asdict(value)


def parse_answer(text: str, *, node: str) -> tuple[NodeFacts, float] | None:
    """A node's facts and its time, from all that it printed; None where there is no answer."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    try:
        value = json.loads(lines[-1].removeprefix(MARK))
        now = float(value["now"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    groups: dict[str, Any] = {name: _one(kind, value.get(name)) for name, kind in _ONE.items()}
    groups |= {name: _many(kind, value.get(name)) for name, kind in _MANY.items()}
    return NodeFacts(node=node, **groups), now


def _one(kind: type[_T], value: Any) -> _T | Unknown:
    if not isinstance(value, dict):
        return Unknown("the node does not say")
    if "unknown" in value:
        return Unknown(str(value["unknown"]))
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: given for name, given in value.items() if name in known})
    except TypeError:
        return Unknown("the node's answer cannot be read")


def _many(kind: type[_T], value: Any) -> tuple[_T, ...] | Unknown:
    if not isinstance(value, list):
        found = _one(kind, value)
        return found if isinstance(found, Unknown) else Unknown("the node's answer cannot be read")
    found_all = [_one(kind, one) for one in value]
    bad = next((one for one in found_all if isinstance(one, Unknown)), None)
    return bad or tuple(one for one in found_all if not isinstance(one, Unknown))
