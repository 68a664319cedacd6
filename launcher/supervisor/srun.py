"""Starts the ranks of one attempt as one job step: ``srun``, one task per rank.

Building the command and the environment is pure. srun's own word about tasks is read from what it
prints, since its exit code says little: it can be 0 although no task ever started.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from submitrain.config import RunConfig
from submitrain.launcher.container import (
    ContainerStep,
    Runtime,
    container_step,
    make_caches,
)
from submitrain.launcher.supervisor.evidence import RankExit
from submitrain.launcher.supervisor.processes import (
    RANK_COMMAND,
    RankGroup,
    package_root,
    rank_environment,
    start_process,
)
from submitrain.run_folder import RunDir
from submitrain.slurm.client import find_step, scancel

VICTIM_GRACE_S = 2.0
"""Seconds that the others get, after a first death, to write their own failure records.

Then the step is killed. ``--kill-on-bad-exit=1`` would leave that to srun, which sends TERM (our
ranks only note the wish to stop) and KILL after KillWait, and blocks anybody else's KILL meanwhile:
measured, ranks ran again 12.7 s after a kill with KillWait=10, and 4.8 s after it this way.
"""
STEP_END_S = 15.0
"""Seconds for a killed step to end before srun itself is killed."""
_INHERITED_BINDING = re.compile(
    r"^(SLURM_(CPU|MEM|ACCEL|GPU|TRES)_BIND|SLURM_(TRES|GPUS)_PER_TASK$|SLURM_NTASKS_PER_GPU$"
    r"|SRUN_CPUS_PER_TASK$)"
)
"""Bindings of the batch step, and shares of a task that srun would take for the ranks'.

From Slurm 23.11 on sbatch also sets SLURM_TRES_PER_TASK; where a site's plugin chose the CPUs, srun
refuses it beside SLURM_CPUS_PER_TASK ("set by two different environment variables").
"""
_RANK_VARIABLES = re.compile(
    r"^(SUBMITRAIN_|PYTHONPATH$|PYTHONSAFEPATH$|PYTHONUNBUFFERED$|OMP_NUM_)"
)


@dataclass(frozen=True)
class StepShape:
    """How many tasks the step has, and where."""

    num_nodes: int
    tasks_per_node: int
    cpus_per_task: int | None
    has_gpus: bool
    nodelist: tuple[str, ...] = ()
    """Nodes of the job to run on; empty means all of them."""
    name: str = ""
    """Name of the step; empty: that of the attempt."""
    logs: Path | None = None
    """Folder of the tasks' output; None: that of the attempt."""

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.num_nodes * self.tasks_per_node


def srun_command(
    shape: StepShape,
    config: RunConfig,
    run_dir: RunDir,
    *,
    attempt: int,
    container: ContainerStep | None = None,
    command: tuple[str, ...] = (),
) -> list[str]:
    """The whole command line of the step.

    Sources: srun(1); ``--overlap`` because the step of an earlier attempt counts as running for as
    long as a lost node does not answer; ``--cpus-per-task`` because srun of Slurm 22.05 and later
    does not inherit it; ``--gpu-bind=none`` because isolating each task breaks NCCL's peer-to-peer
    copies.
    """
    logs = str(shape.logs or run_dir.logs(attempt)).replace("%", "%%")
    flags = [
        "srun",
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--overlap",
        f"--nodes={shape.num_nodes}",
        f"--ntasks={shape.world_size}",
        f"--ntasks-per-node={shape.tasks_per_node}",
        f"--job-name={shape.name or step_name(attempt)}",
        "--input=none",
        f"--output={logs}/rank%5t.out",
        f"--error={logs}/rank%5t.err",
        "--export=ALL",
    ]
    if shape.nodelist:
        flags.append(f"--nodelist={','.join(shape.nodelist)}")
    if shape.cpus_per_task is not None:
        flags.append(f"--cpus-per-task={shape.cpus_per_task}")
    if shape.has_gpus:
        flags.append("--gpu-bind=none")
    flags += [*(container.srun_flags if container else ()), *config.slurm.srun_args]
    words = command or (sys.executable if container is None else "python3", *RANK_COMMAND)
    return [*flags, *(container.prefix if container else ()), *words]


def named_variables(environment: Mapping[str, str], extra: Iterable[str]) -> tuple[str, ...]:
    """Names of what ranks must see as it is outside: ours, and what the configuration adds."""
    return tuple(sorted({name for name in environment if _RANK_VARIABLES.match(name)} | {*extra}))


def step_name(attempt: int) -> str:
    """By this name the step of an attempt is found again."""
    return f"attempt-{attempt:03d}"


def srun_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment for srun: bindings of the batch step would pin every rank to the same cores."""
    return {
        name: value for name, value in environment.items() if not _INHERITED_BINDING.match(name)
    }


@dataclass(frozen=True)
class SrunSpawner:
    """Ranks as one step of the surrounding Slurm job."""

    run_dir: RunDir
    job_id: str
    config: RunConfig
    shape: StepShape
    nodes: tuple[str, ...]
    extra_env: Mapping[str, str]
    command: tuple[str, ...] = ()
    runtime: Runtime | None = None
    """What runs the ranks' container; None = there is none."""

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.shape.world_size

    def start(self, attempt: int) -> SrunGroup:
        """Start the step; srun's own words go to ``srun.err`` beside the ranks' logs."""
        shape, config, run_dir = self.shape, self.config, self.run_dir
        base, job_id, extra = srun_environment(os.environ), self.job_id, self.extra_env
        environment = rank_environment(base, run_dir, attempt=attempt, job_id=job_id, extra=extra)
        root = package_root()
        if root is not None and self.runtime is not None:
            environment["PYTHONPATH"] += f"{os.pathsep}{root}"
        if shape.cpus_per_task is not None:
            environment.setdefault("OMP_NUM_THREADS", str(shape.cpus_per_task))
        names = named_variables(environment, extra)
        container = container_step(
            config, run_dir, self.runtime, has_gpus=shape.has_gpus, variables=names
        )
        if container is not None:
            environment = container.environment(environment, names)
            make_caches(config, run_dir)
        line = srun_command(
            shape, config, run_dir, attempt=attempt, container=container, command=self.command
        )
        words = (shape.logs or run_dir.logs(attempt)) / "srun.err"
        process = start_process(line, environment, words, words)
        return SrunGroup(process, words, job_id, shape.name or step_name(attempt))


class SrunGroup(RankGroup):
    """A running step; when one rank dies the rest of it is killed after a short grace."""

    def __init__(
        self, process: subprocess.Popen[bytes], words: Path, job_id: str, step: str
    ) -> None:
        self._process = process
        self._words = words
        self._job_id = job_id
        self._step = step
        self._kill_at: float | None = None
        self._gone_by: float | None = None
        self._own_ends: int | None = None

    def poll(self) -> bool:
        if self._process.poll() is not None:
            return True
        now = time.monotonic()
        if self._kill_at is None and (
            any(one.died for one in self.exits()) or _LOST_NODE in self._read()
        ):
            self._kill_at = now + VICTIM_GRACE_S
        if self._kill_at is not None and now > self._kill_at and self._gone_by is None:
            self._kill_step()
        if self._gone_by is not None and now > self._gone_by:
            self._process.kill()
        return False

    def _read(self) -> str:
        try:
            return self._words.read_text(errors="replace")
        except OSError:
            return ""

    def exits(self) -> tuple[RankExit, ...]:
        """As far as srun said; those that exited 0 it does not mention."""
        exits = parse_exits(self._read())
        before = len(exits) if self._own_ends is None else self._own_ends
        return (*exits[:before], *(replace(one, ours=True) for one in exits[before:]))

    def launcher_code(self) -> int | None:
        return self._process.returncode

    def launcher_error(self) -> str:
        """srun's last words, on one line."""
        lines = self._read().strip().splitlines()
        return " | ".join(lines[-3:]) or f"srun exited {self._process.returncode}"

    def request_stop(self, number: signal.Signals) -> None:
        """Nothing to do: ranks on other nodes see the stop request in the run folder."""

    def dump_stacks(self) -> None:
        """SIGUSR1 to the step; slurmstepd passes it on to the tasks on every node."""
        step = find_step(self._job_id, self._step)
        if step is not None:
            scancel("--signal=USR1", step)

    def kill(self) -> None:
        """End the step and wait for srun."""
        if self._process.poll() is not None:
            return
        self._kill_step()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=STEP_END_S)
            return
        self.abandon()

    def abandon(self) -> None:
        """End srun alone: after a restart elsewhere the job's steps have the same ids again.

        The fenced ranks leave by themselves (``train.context.leave_if_fenced``).
        """
        self._process.kill()
        self._process.wait()

    def _kill_step(self) -> None:
        """KILL for all tasks at once; a step that cannot be found is left to srun's own TERM."""
        self._gone_by = time.monotonic() + STEP_END_S
        self._own_ends = len(self.exits())
        step = find_step(self._job_id, self._step)
        if step is not None and scancel("--signal=KILL", step).code == 0:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()


_LOST_NODE = "Node failure on "
_ENDED_FOR = re.compile(
    r"\*\*\* STEP \S+ ON \S+ CANCELLED AT \S+( DUE TO (?P<why>[A-Z ]+?))? \*\*\*"
)


def step_ended_for(text: str) -> str | None:
    """slurmstepd's reason for ending a step, ``""`` for a plain scancel, None when it did not."""
    matches = list(_ENDED_FOR.finditer(text))
    return (matches[-1]["why"] or "") if matches else None


_TASK_LINE = re.compile(
    r"^srun: error: (?P<host>[^\s:]+): tasks? (?P<ranks>[\d,\-]+): (?P<how>.+)$"
)
_ENDING_LINE = re.compile(
    r"Terminating (Step|Job)|forcing job termination|CANCELLED AT|Job step abort"
)
_SIGNAL_NAMES = {signal.strsignal(number): -int(number) for number in signal.Signals}


def parse_exits(text: str) -> tuple[RankExit, ...]:
    """What srun printed about the ends of tasks, in its order.

    ``srun: error: node2: task 1: Killed`` or ``...: tasks 0-3: Exited with exit code 85``; ends
    after ``Terminating StepId`` are the step's, not the tasks' own.
    """
    exits: list[RankExit] = []
    ending = False
    for line in text.splitlines():
        if _ENDING_LINE.search(line):
            ending = True
        match = _TASK_LINE.match(line.strip())
        code = _code_of(match["how"]) if match else None
        if match and code is not None:
            ranks = _expand_ranks(match["ranks"])
            exits.extend(RankExit(rank, code, match["host"], ours=ending) for rank in ranks)
    return tuple(exits)


def _code_of(how: str) -> int | None:
    """Exit code of srun's wording; negative for a signal."""
    if match := re.match(r"Exited with exit code (\d+)", how):
        return int(match.group(1))
    if how.startswith("Out Of Memory"):
        return -int(signal.SIGKILL)
    return _SIGNAL_NAMES.get(re.sub(r" \(core dumped\)$", "", how.strip()))


def _expand_ranks(text: str) -> list[int]:
    parts = (part.partition("-") for part in text.split(","))
    spans = [(int(first), int(last or first)) for first, _, last in parts if first]
    return [rank for first, last in spans for rank in range(first, last + 1)]
