"""Starts real supervisors in processes of their own, with the light rank program, and waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from submitrain.events import Kind, read_events
from submitrain.run_folder import RunDir

REPOSITORY = Path(__file__).resolve().parent.parent
RUN_JOB = (
    "import json, sys; from submitrain.launcher.supervisor.job import TrainingJob; "
    "print('RESULT', json.dumps(TrainingJob(sys.argv[1])()))"
)


@dataclass
class CountingRun:
    """A run folder whose ranks are ``tests.programs.counting``."""

    run_dir: RunDir
    process: subprocess.Popen[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> CountingRun:
        """Start the supervisor; its output goes to ``supervisor.log`` in the run folder."""
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN_JOB, str(self.run_dir.root)],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.run_dir.root,
            )
        return self

    def wait(self, timeout_s: float = 60) -> int:
        """The supervisor's exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Signal the supervisor."""
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def log_path(self) -> Path:
        return self.run_dir.root / "supervisor.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def summary(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.run_dir.summary.read_text())
        return value

    @property
    def saved_step(self) -> int:
        return int(json.loads((self.run_dir.root / "saved.json").read_text())["step"])

    def ends(self) -> list[dict[str, Any]]:
        """The recorded ends of attempts."""
        kinds = frozenset({Kind.ATTEMPT_END})
        return list(read_events(self.run_dir.attempts, kinds=kinds))

    def events(self, kind: Kind, rank: int = 0) -> list[dict[str, Any]]:
        """Events of one kind of one rank."""
        return list(read_events(self.run_dir.events(rank), kinds=frozenset({kind})))

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        """Wait until something holds; the supervisor's log is in the error."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s} s in vain\n{self.log}")
            time.sleep(0.05)

    def wait_for_step(self, step: int, timeout_s: float = 30) -> None:
        """Wait until rank 0 recorded a step."""
        self.wait_for(
            lambda: any(event["step"] >= step for event in self.events(Kind.STEP)), timeout_s
        )

    def rank_pid(self, rank: int) -> int:
        """Process id of a rank of the newest attempt."""
        return int(self.events(Kind.START, rank)[-1]["pid"])


def make_run(
    root: Path,
    *,
    plan: dict[str, Any],
    nodes: int | str = 1,
    tasks: int = 2,
    slurm: dict[str, Any] | None = None,
    resilience: dict[str, Any] | None = None,
    distributed: dict[str, Any] | None = None,
    top: dict[str, Any] | None = None,
) -> RunDir:
    """A run folder for the counting program, as ``launch`` would leave it."""
    root.mkdir(parents=True)
    config = {
        "slurm": {"nodes": nodes, "ntasks_per_node": tasks, **(slurm or {})},
        "resilience": resilience or {},
        "distributed": distributed or {},
        "logging": {"heartbeat_s": 0.5},
        "preflight": "off",
        **(top or {}),
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    (root / "counting.json").write_text(json.dumps(plan))
    return RunDir(root)


def rank_environment() -> dict[str, str]:
    """What makes ranks run the counting program."""
    return {
        "SUBMITRAIN_RANK_MODULE": "tests.programs.counting",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def counting_run(root: Path, **settings: Any) -> Iterator[CountingRun]:
    """A started local run; its supervisor is killed at the end if it still lives."""
    run = CountingRun(make_run(root, **settings), environment=rank_environment())
    try:
        yield run.start()
    finally:
        if run.process is not None and run.process.poll() is None:
            run.process.kill()
            run.process.wait()
