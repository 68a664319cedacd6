"""What a drill can do to a run, what each of that needs, and what should come of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from submitrain.config import RunConfig
from submitrain.errors import UserError
from submitrain.train.faults import Fault, FaultKind, Moment


class Hand(StrEnum):
    """What the drill does from outside while the run goes on."""

    STOP = "stop and resume"
    REQUEUE = "requeue"


class Expected(StrEnum):
    """What should come of a run."""

    SAME = "same curve"
    """It finishes with the undisturbed curve."""
    FINISH = "finishes"
    """It finishes; from the fault on, the curve is another one by design."""
    STOP = "stops"
    """It stops at once and says why."""


@dataclass(frozen=True)
class Place:
    """Where a drill is held, and what of that decides what it can do."""

    cluster: str
    """local or slurm."""
    config: RunConfig
    """As shortened for the drill."""

    @property
    def last_rank(self) -> int:
        """The rank that most faults strike; not rank 0, which keeps the records."""
        return self.config.world_size - 1


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


def _anywhere(_place: Place) -> str | None:
    return None


@dataclass(frozen=True)
class Scenario:
    """One run of a drill."""

    id: str
    what: str
    """What happens, as a sentence without its end."""
    needs: str
    causes: frozenset[str]
    """How the interrupted attempt should be classified."""
    moment: Moment | None = None
    kind: FaultKind | None = None
    when: str = "middle"
    """Which of ``Steps``."""
    hand: Hand | None = None
    expected: Expected = Expected.SAME
    short_time_limit: bool = False
    extra_s: float = 0.0
    """Seconds that it takes beside a second start."""
    why_not: Callable[[Place], str | None] = _anywhere
    """Why this place does not allow it; None where it does."""

    def step(self, steps: Steps) -> int:
        """The step at which it happens."""
        return int(getattr(steps, self.when))

    def faults(self, place: Place, steps: Steps) -> tuple[Fault, ...]:
        """What is planned inside the ranks."""
        if self.moment is None or self.kind is None:
            return ()
        fault = Fault(
            id=self.id,
            moment=self.moment,
            kind=self.kind,
            rank=place.last_rank,
            step=self.step(steps),
        )
        return (fault,)

    def default(self, place: Place) -> bool:
        """Whether it is part of a drill when nothing else is asked for."""
        return self.expected is Expected.SAME and self.why_not(place) is None


def _on_slurm(place: Place) -> str | None:
    return None if place.cluster == "slurm" else "there is no queue without Slurm"


def _requeues(place: Place) -> str | None:
    if place.cluster == "slurm" and not place.config.slurm.requeue:
        return "slurm.requeue is false"
    return None


def _requeues_on_slurm(place: Place) -> str | None:
    return _on_slurm(place) or _requeues(place)


def _goes_on_after_nan(place: Place) -> str | None:
    limits = place.config.resilience
    if any(getattr(limits, key, 0) for key in ("max_skipped_steps", "max_rollbacks")):
        return None
    return "the run stops at numbers that are not finite (resilience.max_skipped_steps is 0)"


REQUEUE_WAIT_S = 125.0
"""Slurm holds a requeued job back for cred_expire + 1 seconds, 121 by default."""

CATALOGUE: tuple[Scenario, ...] = (
    Scenario(
        id="kill",
        what="a rank is killed (SIGKILL) between forward and backward",
        needs="nothing",
        causes=frozenset({"rank_died"}),
        moment=Moment.STEP,
        kind=FaultKind.KILL,
    ),
    Scenario(
        id="save-kill",
        what="a rank is killed in the middle of writing a checkpoint",
        needs="nothing",
        causes=frozenset({"rank_died"}),
        moment=Moment.SAVE,
        kind=FaultKind.KILL,
        when="save",
    ),
    Scenario(
        id="corrupt",
        what="a bit of the newest checkpoint flips, and a rank is killed",
        needs="nothing",
        causes=frozenset({"rank_died"}),
        moment=Moment.STEP,
        kind=FaultKind.CORRUPT,
        when="late",
    ),
    Scenario(
        id="hang",
        what="a rank stands still (SIGSTOP) in a step",
        needs="nothing",
        causes=frozenset({"hung"}),
        moment=Moment.STEP,
        kind=FaultKind.STOP,
        extra_s=75.0,
    ),
    Scenario(
        id="stop",
        what="the run is stopped as you would do it, and resumed",
        needs="nothing; on Slurm a second job",
        causes=frozenset({"terminated", "cancelled"}),
        hand=Hand.STOP,
    ),
    Scenario(
        id="time-limit",
        what="the time limit comes near in the middle of the run",
        needs="slurm.requeue: true on Slurm",
        causes=frozenset({"time_limit"}),
        short_time_limit=True,
        why_not=_requeues,
    ),
    Scenario(
        id="requeue",
        what="the job is put back into the queue (scontrol requeue)",
        needs="Slurm, slurm.requeue: true",
        causes=frozenset({"requeued"}),
        hand=Hand.REQUEUE,
        why_not=_requeues_on_slurm,
    ),
    Scenario(
        id="nan",
        what="the loss of one micro-batch is not a number",
        needs="resilience.max_skipped_steps or max_rollbacks",
        causes=frozenset({"not_finite", "loss_spike", "finished"}),
        moment=Moment.STEP,
        kind=FaultKind.NAN,
        expected=Expected.FINISH,
        why_not=_goes_on_after_nan,
    ),
    Scenario(
        id="exception",
        what="a rank raises an exception of the program",
        needs="nothing; it is not repaired by design: the run should stop at once",
        causes=frozenset({"program_error"}),
        moment=Moment.OPTIMIZER,
        kind=FaultKind.EXCEPTION,
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
    return _by_name([name.strip() for name in asked.split(",") if name.strip()], place)


def _by_name(names: Sequence[str], place: Place) -> list[Scenario]:
    known = {one.id: one for one in CATALOGUE}
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"--faults: expected all or some of {', '.join(known)}, got {', '.join(unknown)}; "
            "--list says what each of them does"
        )
    if not names:
        raise UserError(f"--faults: expected all or some of {', '.join(known)}, got nothing")
    for name in names:
        if reason := known[name].why_not(place):
            raise UserError(f"--faults: {name} is not possible here: {reason}; leave it out")
    return [known[name] for name in dict.fromkeys(names)]
