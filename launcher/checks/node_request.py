"""What a node is asked by the preflight, and what it answers. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from submitrain.launcher.checks.finding import Finding

_MARK = "@preflight "
"""Begins the one line of a node's output that is its answer."""


@dataclass(frozen=True)
class NodeRequest:
    """What the first node asks of a node, and what the run needs there."""

    node: str
    asker: str
    """The first node."""
    folder: str
    """Shared folder in which both sides write a file."""
    token: str
    written: bool = True
    """Whether the first node could write its own file there."""
    hosts: tuple[str, ...] = ()
    port: int = 0
    """Where the first node answers with the token; 0: nowhere."""
    world_size: int = 1
    gpus_per_node: int = 0
    checkpoint_bytes: int | None = None
    """Size of the newest checkpoint, where there is one."""
    versions: bool = True
    """Whether versions are wanted: there is another node to compare them with."""

    def as_text(self) -> str:
        """JSON for one argument of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> NodeRequest:
        """Read back what ``as_text`` wrote."""
        value = json.loads(text)
        return cls(**{**value, "hosts": tuple(value["hosts"])})


@dataclass(frozen=True)
class NodeAnswer:
    """A node's findings, and what only the first node can judge."""

    findings: tuple[Finding, ...]
    now: float
    """By the node's own clock, UTC seconds."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of software, by name; empty where they were not asked for or could not be read."""

    def as_line(self) -> str:
        """One line of output."""
        findings = [one.as_json() for one in self.findings]
        value = {"now": self.now, "versions": self.versions, "findings": findings}
        return f"{_MARK}{json.dumps(value)}\n"

    @classmethod
    def parse(cls, output: str) -> NodeAnswer | None:
        """The answer in all that a node printed; None where there is none."""
        lines = [line for line in output.splitlines() if line.startswith(_MARK)]
        try:
            value = json.loads(lines[-1].removeprefix(_MARK))
            findings = tuple(Finding.from_json(one) for one in value["findings"])
            return cls(findings, float(value["now"]), dict(value["versions"]))
        except (IndexError, ValueError, KeyError, TypeError, AttributeError):
            return None
