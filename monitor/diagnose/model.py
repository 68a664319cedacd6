"""The types of a diagnosis: classes of failure, trust in a line, findings, the result. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any


class FailureClass(StrEnum):
    """What kind of thing ended a run."""

    CUDA_OOM = "cuda_oom"
    """The GPU's memory did not suffice."""
    HOST_OOM = "host_oom"
    """The node's or the job's memory did not suffice."""
    NCCL_TIMEOUT = "nccl_timeout"
    """A collective never completed, and no rank said why."""
    NCCL_ERROR = "nccl_error"
    """NCCL itself failed: network card, driver, shared memory, misuse."""
    NODE_FAIL = "node_fail"
    """A node was lost."""
    PREEMPTED = "preempted"
    """The scheduler, or a person, ended or requeued the job from outside."""
    TIME_LIMIT = "time_limit"
    """The job's time was over."""
    PYTHON_EXCEPTION = "python_exception"
    """The program raised an exception of no more specific class."""
    NAN_LOSS = "nan_loss"
    """Loss or gradients are not finite."""
    DISK_FULL = "disk_full"
    """No space left, or a quota is exceeded."""
    SEGFAULT = "segfault"
    """A process crashed in native code."""
    GPU_XID = "gpu_xid"
    """A GPU, its driver or its links failed."""
    FILESYSTEM = "filesystem"
    """A file system failed, denied access or returned rubbish."""
    IMPORT_ERROR = "import_error"
    """A module or a shared library is missing or does not fit."""
    CONFIG_ERROR = "config_error"
    """Arguments, configuration or the resource request are wrong."""
    CONTAINER_ERROR = "container_error"
    """The container of the ranks did not start: runtime, image or mount."""
    AUTH_ERROR = "auth_error"
    """A credential is missing, wrong or without the right."""
    NETWORK_ERROR = "network_error"
    """A host could not be reached, or a connection broke."""
    DATALOADER_WORKER = "dataloader_worker"
    """A worker process of the data loader failed."""
    BENIGN = "benign"
    """Nothing here says that anything failed."""


class Trust(IntEnum):
    """How far one line is trusted, from the weakest to the strongest."""

    MENTION = 0
    """A warning, or a message of a process that may have gone on."""
    EXIT = 1
    """How a process ended, without a reason: exit codes, signals."""
    VICTIM = 2
    """The usual consequence of another rank's death; a cause only where nothing else is found."""
    EXCEPTION = 3
    """An exception of no specific class."""
    CAUSE = 4
    """A specific reason, in the program's own words."""
    RECORD = 5
    """A rank's own failure record."""
    KERNEL = 6
    """The kernel or slurmstepd says it."""
    SCHEDULER = 7
    """The scheduler's state says it."""


@dataclass(frozen=True, order=True)
class Moment:
    """A time read from a line; only moments of the same ``clock`` can be compared."""

    clock: str
    seconds: float


@dataclass(frozen=True)
class Finding:
    """One line that speaks of a failure. ``line`` counts from 1; ``offset`` is in bytes."""

    kind: FailureClass
    trust: Trust
    text: str
    source: str = ""
    line: int = 0
    offset: int = 0
    rank: int | None = None
    node: str | None = None
    moment: Moment | None = None
    survived: bool = False
    """Training continued after it, so it ended nothing."""
    first: bool = False
    """torchrun's report names this one as the first that was observed."""

    @property
    def place(self) -> str:
        """``file:line``, as editors understand it."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "class": str(self.kind),
            "trust": self.trust.name.lower(),
            "file": self.source,
            "line": self.line,
            "rank": self.rank,
            "node": self.node,
            "text": self.text,
        }


@dataclass(frozen=True)
class Remedy:
    """What to do: ``step`` is one of retry, fix, exclude_node, resubmit, nothing."""

    step: str
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """The root cause of a failure, or ``benign``; ``confidence`` runs from 0 to 1."""

    kind: FailureClass
    confidence: float
    summary: str
    remedy: Remedy
    rank: int | None = None
    node: str | None = None
    evidence: tuple[Finding, ...] = ()
    """Lines that the diagnosis rests on, the decisive one first."""
    victims: tuple[Finding, ...] = ()
    """First lines of other classes: consequences of the cause, or what the run survived."""
    notes: tuple[str, ...] = field(default=())

    @property
    def benign(self) -> bool:
        """Whether nothing failed, as far as the evidence goes."""
        return self.kind is FailureClass.BENIGN

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "class": str(self.kind),
            "confidence": round(self.confidence, 2),
            "rank": self.rank,
            "node": self.node,
            "summary": self.summary,
            "action": {"step": self.remedy.step, "text": self.remedy.text},
            "evidence": [one.as_json() for one in self.evidence],
            "victims": [one.as_json() for one in self.victims],
            "notes": list(self.notes),
        }
