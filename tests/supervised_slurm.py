"""Submits counting runs to a real Slurm through submitit, the way the product does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submitrain.config.job import SlurmConfig
from submitrain.events import Kind, read_events
from submitrain.launcher.plan.sbatch import job_shape
from submitrain.launcher.submit.claims import note_submission
from submitrain.launcher.submit.submit import submit_slurm
from submitrain.run_folder import write_json_atomically
from tests.cluster import SlurmCluster
from tests.supervised import CountingRun, make_run, rank_environment


class SlurmCountingRun(CountingRun):
    """A counting run that is supervised inside a Slurm job."""

    cluster: SlurmCluster
    job_id: int

    @property
    def log(self) -> str:
        """What the job's process wrote, over all of its restarts."""
        folder = self.run_dir.submitit
        return "\n".join(path.read_text() for path in sorted(folder.glob("*_log.*")))

    def wait_for_state(self, state: str, timeout_s: float = 120) -> dict[str, str]:
        """Wait for a state of the job; the fields of ``scontrol show job``."""
        return self.cluster.wait_for_state(self.job_id, state, timeout_s=timeout_s)

    def jobs(self) -> list[int]:
        """Ids of all jobs of the run, the oldest first."""
        return [int(line["job_id"]) for line in read_events(self.run_dir.submissions)]

    def starts(self) -> list[dict[str, Any]]:
        """The recorded starts of attempts."""
        return list(read_events(self.run_dir.attempts, kinds=frozenset({Kind.ATTEMPT_START})))

    def causes(self) -> list[tuple[str, str]]:
        """Cause and action of every ended attempt."""
        return [(end["cause"], end["action"]) for end in self.ends()]


@contextmanager
def slurm_run(
    cluster: SlurmCluster,
    root: Path,
    *,
    sbatch: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    **settings: Any,
) -> Iterator[SlurmCountingRun]:
    """A submitted counting run; its jobs are cancelled at the end.

    ``sbatch`` holds submitit's parameters; the limit is 5 minutes unless it says otherwise.
    ``environ`` is added to the job's environment.
    """
    nodes, tasks = settings.setdefault("nodes", 2), settings.setdefault("tasks", 1)
    run = SlurmCountingRun(make_run(root, **settings))
    run.cluster = cluster
    shape = {"nodes": nodes, "ntasks_per_node": tasks, **settings.get("slurm", {})}
    slurm = SlurmConfig.model_validate(shape)
    parameters = {
        "job_name": root.name,
        "time": 5,
        **job_shape(slurm),
        "mem": "200MB",
        "partition": "normal",
        "signal_delay_s": 10,
        "use_srun": False,
        "additional_parameters": {"requeue": True},
        **(sbatch or {}),
    }
    given = environ or {}
    record = {"workdir": str(root), "code": {"pinned": False}, "cluster": "slurm"}
    write_json_atomically(run.run_dir.record, record)
    environ = {**os.environ, **cluster.env, **rank_environment(), "PYTHONSAFEPATH": "1"}
    environ |= given
    job_id = submit_slurm(run.run_dir, parameters, workdir=root, environ=environ)
    line = {"attempt": 0, "job_id": job_id, "sbatch": parameters}
    note_submission(run.run_dir, "slurm", line)
    run.job_id = int(job_id)
    try:
        yield run
    finally:
        for one in run.jobs():
            cluster.run("scancel", "--quiet", str(one), check=False)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while: sbatch hands them to the job."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
