"""Reads one run's folder for ``monitor.scaling``, and asks Slurm how long its first job waited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitor.goodput_read import rank_events
from monitor.scaling.timing import Timing, Wanted, timing_of
from monitor.slurm import Ask, ask, epoch_s
from train.events import Kind, read_events
from train.rundir import RunDir

_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Sharing:
    """On how many machines a run's nodes really were; None where ranks did not say."""

    nodes: int
    machines: int | None

    @property
    def emulated(self) -> bool:
        """Whether several nodes were one machine, and so shared its cores."""
        return self.machines is not None and self.machines < self.nodes


@dataclass(frozen=True)
class RunMeasurement:
    """What one run folder says of speed, waiting and trouble."""

    timing: Timing
    wait_s: float | None
    """In the queue until its first start; None where there was none, or nobody knows."""
    restarts: int
    """Attempts after the first."""
    sharing: Sharing
    losses: tuple[tuple[int, float], ...]
    """(step, loss); of a step computed twice the later one."""
    validation_loss: float | None


def read_measurement(
    folder: Path, wanted: Wanted, *, ranks_per_node: int, waits: Mapping[str, float]
) -> RunMeasurement:
    """Measure the run in a folder, as far as it has come; ``waits`` are those of ``read_waits``."""
    run_dir = RunDir(folder)
    attempts = list(read_events(run_dir.attempts, kinds=frozenset({Kind.ATTEMPT_START})))
    started_at = (
        _number(attempts[0].get("job_started_at") or attempts[0]["t"]) if attempts else None
    )
    losses: dict[int, float] = {}
    validation: float | None = None
    events = list(rank_events(run_dir.events(0)))
    for event in events:
        if event["kind"] == Kind.STEP and (loss := _number(event.get("loss"))) is not None:
            losses[event["step"]] = loss
        elif event["kind"] == Kind.VALIDATION:
            validation = _number(event.get("loss"))
    return RunMeasurement(
        timing=timing_of(events, wanted, started_at=started_at),
        wait_s=_wait_s(run_dir, started_at, waits),
        restarts=max(0, run_dir.newest_attempt() - 1),
        sharing=read_sharing(run_dir, ranks_per_node=ranks_per_node),
        losses=tuple(sorted(losses.items())),
        validation_loss=validation,
    )


def read_sharing(run_dir: RunDir, *, ranks_per_node: int) -> Sharing:
    """Nodes of the newest attempt, and machines (kernels, by their boot ids) under its ranks."""
    starts = [start for path in run_dir.events_dir.glob("rank*.jsonl") if (start := _start(path))]
    newest = max((start["attempt"] for start in starts), default=0)
    ours = [start for start in starts if start["attempt"] == newest]
    machines = {start.get("machine") for start in ours}
    nodes = max((int(start["world_size"]) for start in ours), default=0) // ranks_per_node
    return Sharing(nodes, len(machines) if machines and all(machines) else None)


def _start(path: Path) -> dict[str, Any] | None:
    """The newest start of one rank."""
    newest = None
    for event in read_events(path, kinds=frozenset({Kind.START})):
        newest = event
    return newest


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
    command = ["sacct", "-X", "--duplicates", "-P", "-n", f"--delimiter={_SEPARATOR}"]
    answer = run([*command, "--format=JobIDRaw,Eligible,Start", f"--jobs={','.join(jobs)}"])
    found: dict[str, tuple[float, float]] = {}
    for line in answer.out.splitlines() if answer.code == 0 else ():
        job_id, *texts = [*line.split(_SEPARATOR), "", ""][:3]
        eligible, start = (epoch_s(text) for text in texts)
        if eligible is not None and start is not None and start >= eligible:
            this = (start, start - eligible)
            found[job_id] = min(found.get(job_id, this), this)
    return {job_id: wait_s for job_id, (_, wait_s) in found.items()}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
