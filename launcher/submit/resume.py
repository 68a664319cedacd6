"""Submits an existing run folder again, as it was launched or with other resources."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitrain.config.resolve import secret_environment
from submitrain.errors import UserError
from submitrain.launcher.checks.objections import request_of
from submitrain.launcher.checks.schedulability import judge, permit
from submitrain.launcher.plan.config import LoadedConfig, load_config
from submitrain.launcher.plan.plan import Plan, make_plan
from submitrain.launcher.plan.prepare import chained, check_paths, gpus_available
from submitrain.launcher.submit.audit_events import client_act
from submitrain.launcher.submit.claims import Claim, claim_submission
from submitrain.launcher.submit.start import submit
from submitrain.launcher.submit.submit import RecordedLaunch, choose_cluster
from submitrain.monitor.audit.chain import Act
from submitrain.run_folder import write_text_atomically
from submitrain.slurm.client import read_cluster
from submitrain.status import RunState

if TYPE_CHECKING:
    from submitrain.launcher.run import Run


def resume(
    run: Run, slurm: Mapping[str, Any], *, after: str | None = None, force: bool = False
) -> None:
    """Submit ``run`` again; see ``Run.resume``. On Slurm it waits for the job ``after`` to end.

    Raises:
        UserError: it still runs, may still run, has finished, or another client submits it now.
    """
    run_dir = run.run_dir
    with claim_submission(run_dir, "resume") as claim:
        # Only now: whoever held the claim before may have submitted a job.
        refusal = why_not(run.status().state)
        if refusal:
            raise UserError(f"resume: {run.run_id} {refusal}")
        launch = RecordedLaunch.read(run_dir)
        cluster = choose_cluster(launch.cluster)
        loaded = changed_config(run_dir.config, slurm)
        secret_environment(loaded.config, os.environ)
        if cluster.name == "slurm" and loaded.config.slurm.in_container:
            check_paths(loaded.config, launch.workdir)
        plan = make_plan(loaded, cluster=cluster.name, gpus_available=gpus_available(cluster))
        if cluster.name == "slurm" and not force:
            _permit(plan)
        if after is not None and cluster.name == "slurm":
            plan = after_job(plan, after)
        if not run_dir.newest_attempt():  # what has begun waits for nobody any more
            plan = chained(plan, loaded.config)
        files = {run_dir.cancel_request: None, run_dir.summary: None, run_dir.config: loaded.text}
        with client_act(run_dir, Act.RESUME) as act, _changed(claim, files):
            submit(run_dir, cluster, plan, claim)
            act.job_id = str(claim.job_id)


def _permit(plan: Plan) -> None:
    """Refuse what Slurm would never start: resources may have changed, and the cluster, too."""
    try:
        facts = read_cluster()
        schedulability = None if facts is None else judge(request_of(plan.sbatch), facts)
    except Exception:  # an opinion must not keep a run from its submission
        return
    permit(schedulability)


def after_job(plan: Plan, job_id: str) -> Plan:
    """The plan of a job that starts once another one has ended, however; a requeue is no end."""
    wanted = plan.sbatch.get("dependency")
    dependency = ",".join([*([str(wanted)] if wanted else []), f"afterany:{job_id}"])
    return replace(plan, sbatch={**plan.sbatch, "dependency": dependency})


def why_not(state: RunState) -> str | None:
    """Why a run in this state cannot be resumed, with the next step; None when it can."""
    if state is RunState.FINISHED:
        return (
            "has finished; to train further, launch a new run with "
            "model.pretrained_model_name_or_path=<its export folder>"
        )
    if state is RunState.UNKNOWN:
        return "may still run (its state is unknown); try again when the scheduler answers"
    if not state.ended:
        return f"is {state}; it needs no resume, or cancel it first"
    return None


def changed_config(path: Path, slurm: Mapping[str, Any]) -> LoadedConfig:
    """The run's configuration with other resources and the same global batch size.

    Raises:
        ConfigError: the resources are wrong, or do not fit the batch size.
    """
    before = load_config(path)
    if not slurm:
        return before
    if before.config.entry is not None:
        return load_config(path, changes={"slurm": dict(slurm)})
    batch = {"global_batch_size": before.config.batch().global_size, "grad_acc_steps": None}
    return load_config(path, changes={"slurm": dict(slurm), "step_scheduler": batch})


@contextmanager
def _changed(claim: Claim, files: Mapping[Path, str | None]) -> Iterator[None]:
    """Give files another content during the submission, None for away with it.

    The new supervisor must find neither the old one's end nor the wish to cancel. What was there
    comes back when nothing was submitted.
    """
    before = {path: path.read_text() for path in files if path.exists()}
    try:
        for path, text in files.items():
            if text is None:
                path.unlink(missing_ok=True)
            elif text != before.get(path):
                write_text_atomically(path, text)
        yield
    except BaseException:
        for path, text in before.items() if claim.job_id is None else ():
            write_text_atomically(path, text)
        raise
