"""What a row of the matrix is: one fault, its moment, and what must follow. Pure data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from submitrain.train.faults import NO_STEP, FaultKind, Moment

Loss = Literal["nothing", "one interval", "two intervals"]
"""Most steps that may have to be computed again."""


@dataclass(frozen=True)
class Inside:
    """A fault inside a rank (``train.faults``)."""

    moment: Moment
    kind: FaultKind
    rank: int = 0
    step: int | None = None
    """Not before this step; None: in the attempt that follows the row before."""
    seconds: float = 5.0
    """Length of a slow fault."""

    @property
    def pinned(self) -> bool:
        """Whether no step tells its place: it is bound to an attempt then."""
        return self.step is None or self.moment in NO_STEP

    def plan(self, name: str, attempt: int) -> dict[str, Any]:
        """The values of ``train.faults.Fault``."""
        values = {"id": name, "moment": self.moment, "kind": self.kind, "rank": self.rank}
        if self.kind is FaultKind.SLOW:
            values["seconds"] = self.seconds
        if self.pinned:
            return {**values, "attempt": attempt}
        return {**values, "step": self.step}


@dataclass(frozen=True)
class Outside:
    """A fault from outside (``tests.faults.outside.ACTS``), and when it comes."""

    act: str
    step: int | None = None
    """When rank 0 has recorded this step."""
    within: Inside | None = None
    """While this slow fault lasts."""
    between: bool = False
    """When the attempt before has ended and the next one has not begun."""
    seconds: float = 0.0
    """How long it lasts, where that can be chosen."""

    @property
    def moment(self) -> str:
        """Where in the run, in a word."""
        if self.between:
            return "between attempts"
        return f"in {self.within.moment}" if self.within else "training"


@dataclass(frozen=True)
class Expected:
    """How the attempt ends and what the supervisor does; no cause: the attempt goes on."""

    cause: str | None
    action: str | None = None
    says: tuple[str, ...] = ()
    """Regular expressions for the explanation; {rank} and {node} are those that were struck."""
    loses: Loss = "one interval"

    @property
    def ends(self) -> bool:
        """Whether the attempt ends."""
        return self.cause is not None


GOES_ON = Expected(None, loses="nothing")


@dataclass(frozen=True)
class Row:
    """One fault and what must follow."""

    name: str
    fault: Inside | Outside
    expected: Expected

    @property
    def injected(self) -> str:
        """What happens, where, in a few words."""
        fault = self.fault
        if isinstance(fault, Outside):
            return f"{fault.act.replace('_', ' ')} ({fault.moment})"
        return f"{fault.kind} rank {fault.rank} ({fault.moment.replace('_', ' ')})"

    @property
    def inside(self) -> Inside | None:
        """The planned fault in a rank, if there is one."""
        return self.fault if isinstance(self.fault, Inside) else self.fault.within


@dataclass(frozen=True)
class Course:
    """One run and the rows that are played into it, in order."""

    name: str
    site: str
    rows: tuple[Row, ...]
    config: dict[str, Any] = field(default_factory=dict)
    """Sections merged into the configuration."""
    steps: int = 60
    step_s: float = 0.1
    """Least length of a step: faults from outside have to hit it."""
    small_disk: bool = False
    """Keep checkpoints on the small disk."""
    hidden: tuple[str, ...] = ()
    """Programs that are missing from PATH."""
    by_command: bool = False
    """Too slow for every run of the tests: Slurm's own patience is what it waits for."""
    again: tuple[str, ...] = ()
    """Causes that may end further attempts, beside those of the rows."""

    @property
    def data(self) -> tuple[Row, ...]:
        """Faults in the numbers: they strike the undisturbed run, too, as bad data would."""
        return tuple(row for row in self.rows if getattr(row.fault, "kind", "") == FaultKind.NAN)

    def groups(self) -> Iterator[tuple[Row, ...]]:
        """Rows by the attempt they strike: one ends with each row that ends the attempt."""
        group: list[Row] = []
        for row in self.rows:
            group.append(row)
            if row.expected.ends:
                yield tuple(group)
                group = []
        if group:
            yield tuple(group)
