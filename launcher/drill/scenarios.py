"""What a drill can do to a run, what each of that needs, and what the result should be. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from submitrain.attempts import Cause
from submitrain.config import RunConfig
from submitrain.errors import UserError
from submitrain.train.faults import Fault, FaultKind, Moment


class ExternalAction(StrEnum):
    """What the drill does from outside during the run."""

    STOP = "stop and resume"
    REQUEUE = "requeue"


class Expected(StrEnum):
    """How a run should end."""

    SAME = "same curve"
    """It finishes with the undisturbed curve."""
    FINISH = "finishes"
    """It finishes; from the fault on, the curve is another one by design."""
    STOP = "stops"
    """It stops at once and says why."""


@dataclass(frozen=True)
class Place:
    """Where a drill is held: ``cluster`` is local or slurm, ``config`` as shortened for it."""

    cluster: str
    config: RunConfig


@dataclass(frozen=True)
class Steps:
    """The step numbers of a drill that matter."""

    total: int
    save_every: int

    @classmethod
    def of(cls, total: int) -> Steps:
        """Four saves in ``total`` steps."""
        return cls(total, max(1, total // 4))

    @property
    def middle(self) -> int:
        """After the second save, before the third."""
        return 2 * self.save_every + (self.save_every + 1) // 2

    @property
    def save(self) -> int:
        """The second save."""
        return 2 * self.save_every

    @property
    def late(self) -> int:
        """After the third save has begun, so that two checkpoints are published for sure."""
        return 3 * self.save_every + 1


FEWEST_STEPS = 8
"""Below that, saves and faults would fall into the same steps."""


@dataclass(frozen=True)
class Scenario:
    """One run of a drill."""

    id: str
    what: str
    """What happens, as a sentence without its end."""
    causes: frozenset[Cause]
    """How the interrupted attempt should be classified."""
    needs: str = "nothing"
    fault: tuple[Moment, FaultKind] | None = None
    """What happens inside of the last rank; rank 0 keeps the records."""
    when: str = "middle"
    """Which of ``Steps``."""
    action: ExternalAction | None = None
    expected: Expected = Expected.SAME
    short_time_limit: bool = False
    extra_s: float = 0.0
    """Seconds that it takes in addition to a second start."""
    why_not: Callable[[Place], str | None] = lambda _place: None
    """Why this place does not allow it; None where it does."""

    def step(self, steps: Steps) -> int:
        """The step at which it happens."""
        return int(getattr(steps, self.when))

    def faults(self, place: Place, steps: Steps) -> tuple[Fault, ...]:
        """What is planned inside the ranks."""
        if self.fault is None:
            return ()
        moment, kind = self.fault
        rank = place.config.world_size - 1
        return (Fault(id=self.id, moment=moment, kind=kind, rank=rank, step=self.step(steps)),)

    def default(self, place: Place) -> bool:
        """Whether it is part of a drill when nothing else is asked for."""
        return self.expected is Expected.SAME and self.why_not(place) is None


def _may_requeue(place: Place) -> str | None:
    if place.cluster == "slurm" and not place.config.slurm.requeue:
        return "slurm.requeue is false"
    return None


def _can_requeue(place: Place) -> str | None:
    return _may_requeue(place) if place.cluster == "slurm" else "there is no queue without Slurm"


def _goes_on_after_nan(place: Place) -> str | None:
    limits = place.config.resilience
    if any(getattr(limits, key, 0) for key in ("max_skipped_steps", "max_rollbacks")):
        return None
    return "the run stops at numbers that are not finite (resilience.max_skipped_steps is 0)"


REQUEUE_WAIT_S = 125.0
"""Slurm holds a requeued job back for cred_expire + 1 seconds, 121 by default."""

CATALOGUE: tuple[Scenario, ...] = (
    Scenario(
        "kill",
        "a rank is killed (SIGKILL) between forward and backward",
        frozenset({Cause.RANK_DIED}),
        fault=(Moment.STEP, FaultKind.KILL),
    ),
    Scenario(
        "save-kill",
        "a rank is killed in the middle of writing a checkpoint",
        frozenset({Cause.RANK_DIED}),
        fault=(Moment.SAVE, FaultKind.KILL),
        when="save",
    ),
    Scenario(
        "corrupt",
        "a bit of the newest checkpoint flips, and a rank is killed",
        frozenset({Cause.RANK_DIED}),
        fault=(Moment.STEP, FaultKind.CORRUPT),
        when="late",
    ),
    Scenario(
        "hang",
        "a rank stands still (SIGSTOP) in a step",
        frozenset({Cause.HUNG}),
        fault=(Moment.STEP, FaultKind.STOP),
        extra_s=75.0,
    ),
    Scenario(
        "stop",
        "the run is stopped as you would do it, and resumed",
        frozenset({Cause.TERMINATED, Cause.CANCELLED}),
        "nothing; on Slurm a second job",
        action=ExternalAction.STOP,
    ),
    Scenario(
        "time-limit",
        "the time limit comes near in the middle of the run",
        frozenset({Cause.TIME_LIMIT}),
        "slurm.requeue: true on Slurm",
        short_time_limit=True,
        why_not=_may_requeue,
    ),
    Scenario(
        "requeue",
        "the job is put back into the queue (scontrol requeue)",
        frozenset({Cause.REQUEUED}),
        "Slurm, slurm.requeue: true",
        action=ExternalAction.REQUEUE,
        why_not=_can_requeue,
    ),
    Scenario(
        "nan",
        "the loss of one micro-batch is not a number",
        frozenset({Cause.NOT_FINITE, Cause.LOSS_SPIKE, Cause.FINISHED}),
        "resilience.max_skipped_steps or max_rollbacks",
        fault=(Moment.STEP, FaultKind.NAN),
        expected=Expected.FINISH,
        why_not=_goes_on_after_nan,
    ),
    Scenario(
        "exception",
        "a rank raises an exception of the program",
        frozenset({Cause.PROGRAM_ERROR}),
        "nothing; it is not repaired by design: the run should stop at once",
        fault=(Moment.OPTIMIZER, FaultKind.EXCEPTION),
        expected=Expected.STOP,
    ),
)


def choose(asked: str | None, place: Place) -> list[Scenario]:
    """The scenarios of a drill: ``a,b,c``, ``all`` that this place allows, None = the usual ones.

    Raises:
        UserError: an unknown name, or one that this place does not allow.
    """
    if asked is None:
        return [one for one in CATALOGUE if one.default(place)]
    if asked.strip() == "all":
        return [one for one in CATALOGUE if one.why_not(place) is None]
    names = [name.strip() for name in asked.split(",") if name.strip()]
    known = {one.id: one for one in CATALOGUE}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(
            f"--faults: expected all or some of {', '.join(known)}, got "
            f"{', '.join(unknown) or 'nothing'}; --list says what each of them does"
        )
    for name in names:
        if reason := known[name].why_not(place):
            raise UserError(f"--faults: {name} is not possible here: {reason}; leave it out")
    return [known[name] for name in dict.fromkeys(names)]
