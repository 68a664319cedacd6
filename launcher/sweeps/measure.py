"""How fast a run was: which of its steps may be counted, and what else happened to it.

Counted is the wall-clock time from one step's event to the next one's: all that a step takes, the
wait for slower ranks included. A step counts when it is warm (``warmup`` steps of its own attempt
came before it, so that a restart warms up anew), ran on as many ranks as were wanted, and nothing
else happened meanwhile: no save, not even in the background, and no validation.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from submitrain.attempts import read_attempts
from submitrain.events import Event, Kind, Phase, number, read_events
from submitrain.monitor.accounting.records import rank_events
from submitrain.run_folder import RunDir
from submitrain.slurm.client import Ask, ask, query_sacct
from submitrain.slurm.parse import epoch_s

_STEPPING = frozenset({Phase.STEP, Phase.FIRST_STEP})


@dataclass(frozen=True)
class Wanted:
    """What a step must fulfil to be counted."""

    world_size: int | None = None
    """Ranks; None = whatever ran."""
    warmup: int = 0
    """Steps of an attempt that do not count."""
    until_step: int | None = None
    """The last step that counts; the ones after it are there for the saves."""


@dataclass(frozen=True)
class SaveCosts:
    """Saves of one run, in seconds; ``cost_s`` is what one save cost training."""

    saves: int
    cost_s: float
    blocked_s: float
    save_s: float
    bytes: int


@dataclass(frozen=True)
class Measurement:
    """What one run says of speed, waiting and trouble."""

    steps: int = 0
    """Steps that were counted."""
    seconds: float = 0.0
    tokens: int = 0
    """Of these steps, over all ranks."""
    left_out: int = 0
    """Steps during a save or another disturbance, or on another number of ranks."""
    startup_s: float | None = None
    """From the start of the first attempt to the end of its first step."""
    saves: SaveCosts | None = None
    losses: tuple[tuple[int, float], ...] = ()
    """(step, loss); of a step computed twice the later one."""
    validation_loss: float | None = None
    wait_s: float | None = None
    """In the queue until its first start; None where there was none, or nobody knows."""
    restarts: int = 0
    """Attempts after the first."""
    nodes: int = 0
    """Of the newest attempt."""
    machines: int | None = None
    """Kernels under its ranks, by their boot ids; None where ranks did not say."""

    @property
    def emulated(self) -> bool:
        """Whether several nodes were one machine, and so shared its cores."""
        return self.machines is not None and self.machines < self.nodes

    @property
    def tokens_per_s(self) -> float | None:
        """Over all ranks; None when no step was counted."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    @property
    def step_s(self) -> float | None:
        """Mean seconds of a step."""
        return self.seconds / self.steps if self.steps else None

    @property
    def tokens_per_step(self) -> float | None:
        """Mean tokens of a step, over all ranks."""
        return self.tokens / self.steps if self.steps else None


def measure(
    events: Iterable[Event], wanted: Wanted, *, started_at: float | None = None
) -> Measurement:
    """Measure a run by the events of its rank 0; ``started_at``: UTC seconds of its first start."""
    walk = _Walk(wanted)
    for event in events:
        walk.take(event)
    first = walk.first_step_at
    return Measurement(
        steps=walk.steps,
        seconds=sum(walk.spans),
        tokens=walk.tokens,
        left_out=walk.left_out,
        startup_s=None if started_at is None or first is None else max(0.0, first - started_at),
        saves=walk.save_costs(),
        losses=tuple(sorted(walk.losses.items())),
        validation_loss=walk.validation_loss,
    )


@dataclass
class _Walk:
    """Goes through the events once, in order."""

    wanted: Wanted
    steps: int = 0
    tokens: int = 0
    left_out: int = 0
    spans: list[float] = field(default_factory=list)
    first_step_at: float | None = None
    losses: dict[int, float] = field(default_factory=dict)
    validation_loss: float | None = None
    _right_size: bool = True
    _attempt: object = None
    _before: Event | None = None
    _done: int = 0
    """Steps of this attempt."""
    _saving: bool = False
    """A save is being written."""
    _saved: bool = False
    """One was, since the last step."""
    _other: bool = False
    """Something else did."""
    _begun: int = 0
    _followed: set[int] = field(default_factory=set)
    """Which saves had steps during them; the last one of a run has none."""
    _during_saves: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, steps) that passed during a save."""
    _saves: list[Event] = field(default_factory=list)

    def take(self, event: Event) -> None:
        kind, phase = event["kind"], event.get("phase")
        if event.get("attempt") != self._attempt or kind == Kind.START:
            self._attempt, self._before, self._done = event.get("attempt"), None, 0
            self._saving = self._saved = self._other = False
            size = event.get("world_size") if kind == Kind.START else None
            self._right_size = self.wanted.world_size in (None, size)
        if kind == Kind.PHASE and phase == Phase.SAVE:
            self._saving = self._saved = True
            self._begun += 1
        elif kind == Kind.PHASE and phase not in _STEPPING:
            self._other = True
        elif kind in (Kind.CHECKPOINT, Kind.CHECKPOINT_FAILED):
            self._saving, self._saved = False, True
            if kind == Kind.CHECKPOINT and self._right_size:
                self._saves.append(event)
        elif kind == Kind.STEP:
            self._step(event)
        elif kind == Kind.VALIDATION:
            self.validation_loss = number(event.get("loss"))

    def _step(self, event: Event) -> None:
        before, self._before = self._before, event
        if (loss := number(event.get("loss"))) is not None:
            self.losses[event["step"]] = loss
        if self.first_step_at is None:
            self.first_step_at = number(event.get("t"))
        steps = 1 if before is None else event["step"] - before["step"]
        warm = self._done >= self.wanted.warmup
        self._done += max(0, steps)
        if warm and before is not None and steps > 0:
            self._count(before, event, steps)
        self._saved, self._other = self._saving, False

    def _count(self, before: Event, event: Event, steps: int) -> None:
        seconds = (number(event.get("t")) or 0.0) - (number(before.get("t")) or 0.0)
        late = self.wanted.until_step is not None and event["step"] > self.wanted.until_step
        if not self._right_size or self._other or seconds <= 0:
            self.left_out += steps
        elif self._saved:
            self.left_out += 0 if late else steps
            self._during_saves.append((seconds, steps))
            self._followed.add(self._begun)
        elif not late:
            # By the run's total of tokens where it is recorded: a log may leave steps out.
            totals = [number(one.get("total_tokens")) for one in (before, event)]
            if totals[0] is not None and totals[1] is not None:
                self.tokens += int(totals[1] - totals[0])
            else:
                self.tokens += int(number(event.get("tokens")) or 0) * steps
            self.steps += steps
            self.spans.append(seconds)

    def save_costs(self) -> SaveCosts | None:
        """Of all saves that were published; they cost what steps during them took longer."""
        if not self._saves or not self.steps:
            return None
        usual_s = sum(self.spans) / self.steps
        longer_s = sum(s for s, _ in self._during_saves) - usual_s * sum(
            n for _, n in self._during_saves
        )
        blocked_s = statistics.median(number(one.get("blocked_s")) or 0.0 for one in self._saves)
        return SaveCosts(
            saves=len(self._saves),
            cost_s=max(blocked_s, longer_s / max(1, len(self._followed))),
            blocked_s=blocked_s,
            save_s=statistics.median(number(one.get("save_s")) or 0.0 for one in self._saves),
            bytes=max(int(number(one.get("bytes")) or 0) for one in self._saves),
        )


def read_measurement(
    folder: Path, wanted: Wanted, *, ranks_per_node: int, waits: Mapping[str, float]
) -> Measurement:
    """Measure the run in a folder, as far as it has come; ``waits`` are those of ``read_waits``."""
    run_dir = RunDir(folder)
    first = next(iter(read_attempts(run_dir)), None)
    started_at = number(first.start.get("job_started_at")) or first.started_at if first else None
    found = measure(rank_events(run_dir.events(0)), wanted, started_at=started_at)
    nodes, machines = read_sharing(run_dir, ranks_per_node=ranks_per_node)
    return replace(
        found,
        wait_s=_wait_s(run_dir, started_at, waits),
        restarts=max(0, run_dir.newest_attempt() - 1),
        nodes=nodes,
        machines=machines,
    )


def read_sharing(run_dir: RunDir, *, ranks_per_node: int) -> tuple[int, int | None]:
    """Nodes of the newest attempt, and machines under its ranks."""
    starts = []
    for path in run_dir.events_dir.glob("rank*.jsonl"):
        starts += list(read_events(path, kinds=frozenset({Kind.START})))[-1:]
    newest = max((start["attempt"] for start in starts), default=0)
    ours = [start for start in starts if start["attempt"] == newest]
    machines = {start.get("machine") for start in ours}
    nodes = max((int(start["world_size"]) for start in ours), default=0) // ranks_per_node
    return nodes, len(machines) if machines and all(machines) else None


def _wait_s(run_dir: RunDir, started_at: float | None, waits: Mapping[str, float]) -> float | None:
    """From when its first job could have run, as far as it was concerned, to its start."""
    submission = next(read_events(run_dir.submissions), None)
    if submission is None or submission.get("cluster") != "slurm" or started_at is None:
        return None
    job_id = str(submission.get("job_id"))
    if job_id in waits:
        return waits[job_id]
    # Without accounting nobody knows when a job that others came before could have started.
    parameters = submission.get("sbatch")
    if isinstance(parameters, Mapping) and parameters.get("dependency"):
        return None
    return max(0.0, started_at - float(submission["t"]))


def read_waits(folders: Iterable[Path], *, run: Ask = ask) -> dict[str, float]:
    """Seconds that the first job of each run waited, by job id; one question for all of them.

    From sacct(1)'s Eligible (submitted, and what it depended on is over) to its first Start; empty
    without accounting.
    """
    firsts = [next(read_events(RunDir(folder).submissions), {}) for folder in folders]
    jobs = [str(one["job_id"]) for one in firsts if one.get("cluster") == "slurm"]
    if not jobs:
        return {}
    found: dict[str, tuple[float, float]] = {}
    for row in query_sacct(jobs, "JobIDRaw,Eligible,Start", run=run)[0]:
        eligible, start = epoch_s(row["Eligible"]), epoch_s(row["Start"])
        if eligible is not None and start is not None and start >= eligible:
            this = (start, start - eligible)
            found[row["JobIDRaw"]] = min(found.get(row["JobIDRaw"], this), this)
    return {job_id: wait_s for job_id, (_, wait_s) in found.items()}
