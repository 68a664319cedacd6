"""Real ranks without a supervisor: processes of ``launcher.worker.rank`` on one run folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from submitrain.events import Kind, read_events
from submitrain.run_folder import RunDir

REPOSITORY = Path(__file__).resolve().parent.parent
RANK = ("-m", "submitrain.launcher.worker.rank")


@dataclass
class Ranks:
    """The ranks of one attempt."""

    run_dir: RunDir
    attempt: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def wait(self, timeout_s: float = 240) -> list[int]:
        """Exit codes of all ranks; those still running at the end of the time are killed."""
        deadline = time.monotonic() + timeout_s
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"ranks did not end in {timeout_s} s\n{self.output()}") from None
        finally:
            for process in self.processes:
                process.kill()

    def output(self) -> str:
        """What the ranks printed."""
        folder = self.run_dir.logs(self.attempt)
        return "\n".join(f"== {p.name}\n{p.read_text()[-4000:]}" for p in sorted(folder.iterdir()))

    def events(self, kind: Kind, rank: int = 0) -> list[dict[str, Any]]:
        """Events of one kind that a rank wrote in this attempt."""
        found = read_events(self.run_dir.events(rank), kinds=frozenset({kind}))
        return [event for event in found if event["attempt"] == self.attempt]

    def wait_for_step(self, step: int, timeout_s: float = 120) -> None:
        """Wait until rank 0 has recorded ``step``."""
        deadline = time.monotonic() + timeout_s
        while not any(event["step"] >= step for event in self.events(Kind.STEP)):
            if time.monotonic() > deadline or any(p.poll() for p in self.processes):
                raise AssertionError(f"step {step} was not reached\n{self.output()}")
            time.sleep(0.05)


def start(
    folder: Path,
    config: dict[str, Any],
    world_size: int,
    program: tuple[str, ...] = RANK,
    **environment: str,
) -> Ranks:
    """Start the ranks of the next attempt in run folder ``folder``; ``program``: Python's own."""
    folder.mkdir(parents=True, exist_ok=True)
    run_dir = RunDir(folder)
    run_dir.config.write_text(yaml.safe_dump(config, sort_keys=False))
    attempt = run_dir.claim_attempt()
    ranks = Ranks(run_dir, attempt)
    for rank in range(world_size):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONSAFEPATH": "1",
            "SUBMITRAIN_RUN_DIR": str(folder),
            "SUBMITRAIN_ATTEMPT": str(attempt),
            "SUBMITRAIN_JOB_ID": "test",
            "SUBMITRAIN_RANK": str(rank),
            "SUBMITRAIN_LOCAL_RANK": str(rank),
            "SUBMITRAIN_WORLD_SIZE": str(world_size),
            "SUBMITRAIN_LOCAL_WORLD_SIZE": str(world_size),
            **environment,
        }
        with (
            run_dir.log(attempt, rank, "out").open("wb") as out,
            run_dir.log(attempt, rank, "err").open("wb") as err,
        ):
            command = [sys.executable, *program]
            ranks.processes.append(subprocess.Popen(command, env=env, stdout=out, stderr=err))
    return ranks


def train(folder: Path, config: dict[str, Any], world_size: int, **environment: str) -> Ranks:
    """Run the ranks to their end and expect all of them to finish."""
    ranks = start(folder, config, world_size, **environment)
    codes = ranks.wait()
    assert codes == [0] * world_size, f"exit codes {codes}\n{ranks.output()}"
    return ranks
