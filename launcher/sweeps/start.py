"""Starts what is missing of a sweep: on Slurm all at once, in lanes; here one after the other.

On Slurm nobody has to stay: a job beyond the limit depends (``afterany``) on the job before it in
its lane, which a requeue does not end.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from submitrain.errors import UserError
from submitrain.imports import IMPORT_ROOT
from submitrain.launcher.cli.screen import Screen
from submitrain.launcher.plan.prepare import Prepared, prepare
from submitrain.launcher.run import WAIT_POLL_S, Run
from submitrain.launcher.submit.claims import claim_submission, read_claims, read_submissions
from submitrain.launcher.submit.local import start_detached
from submitrain.launcher.submit.resume import after_job
from submitrain.launcher.submit.resume import resume as resume_run
from submitrain.launcher.submit.start import start
from submitrain.launcher.submit.submit import job_environment
from submitrain.launcher.sweeps.folder import LOG_NAME, PointState, SweepFolder, point_states
from submitrain.launcher.sweeps.request import Point
from submitrain.status import RunState


def start_missing(sweep: SweepFolder, screen: Screen) -> None:
    """Start every point that is missing; returns when all are submitted, or here have ended.

    Relative paths of the configuration mean the folder that the sweep was started in.

    Raises:
        UserError: somebody else does so, that folder is gone, the cluster refuses a job, or nothing
            can run.
    """
    with claim_submission(sweep.claims, "sweep"):
        workdir = Path(sweep.record["workdir"])
        if not workdir.is_dir():
            raise UserError(
                f"sweep: expected the folder {workdir} that it was started in, got none"
            )
        with chdir(workdir):
            # Runs that were asked to stop must have stopped before their points start again.
            while stopping := [one.point.id for one in point_states(sweep) if one.stopping]:
                names = ", ".join(stopping)
                screen.doing(f"waits until cancelled runs have saved and ended: {names}")
                time.sleep(WAIT_POLL_S["local"])
            if sweep.cluster == "slurm":
                _submit_all(sweep, screen)
            else:
                _one_after_the_other(sweep, screen)


def _submit_all(sweep: SweepFolder, screen: Screen) -> None:
    states = point_states(sweep)
    jobs = [one.status.job_ids if one.status else () for one in states if one.alive]
    lanes: deque[str | None] = deque(of_run[-1] if of_run else None for of_run in jobs)
    while len(lanes) < sweep.record["at_once"]:
        lanes.appendleft(None)
    for state in states:
        if state.finished or state.alive:
            continue
        if sweep.cancel_request.exists():
            return
        before = lanes.popleft()
        submitted = read_submissions(_start(sweep, state, before).run_dir)
        lanes.append(str(submitted[-1]["job_id"]) if submitted else None)
        after = f", after job {before}" if before else ""
        screen.say(f"{state.point.id}: job {lanes[-1]}{after}")


def _one_after_the_other(sweep: SweepFolder, screen: Screen) -> None:
    points = sweep.points
    for number, point in enumerate(points, start=1):
        if sweep.cancel_request.exists():
            return
        state = next(one for one in point_states(sweep) if one.point.id == point.id)
        if state.finished:
            continue
        began = time.monotonic()
        screen.say(f"{number}/{len(points)} {point.id}")
        run = Run(state.folder) if state.alive and state.folder else _start(sweep, state, None)
        while not (status := run.status()).state.ended:
            total = f" of {status.total_steps}" if status.total_steps else ""
            screen.doing(f"{run.run_id}: {status.state}, step {status.step}{total}")
            time.sleep(WAIT_POLL_S["local"])
        why = f": {status.why}" if status.why and status.state is not RunState.FINISHED else ""
        screen.say(f"  {status.state}{why} ({time.monotonic() - began:.0f} s)")
        if status.user_error and not any(one.finished for one in point_states(sweep)):
            raise UserError(f"sweep: {point.id} failed: {status.why}; no other point was started")


def _start(sweep: SweepFolder, state: PointState, before: str | None) -> Run:
    """Start a point once the job ``before`` has ended; a run that was cut short resumes, unless it
    is timed: after a stop it is cold again, so that it starts anew."""
    timed = sweep.record["mode"] is not None
    if not timed and state.folder is not None and state.status and state.status.state.ended:
        run = Run(state.folder)
        resume_run(run, {}, after=before)
    else:
        prepared = _prepared(sweep, state.point)
        if before is not None:
            prepared = replace(prepared, plan=after_job(prepared.plan, before))
        run = Run(start(prepared).root)
    if sweep.cancel_request.exists() and not run.status().state.ended:
        run.cancel()  # whoever cancelled could not see it yet
    return run


def _prepared(sweep: SweepFolder, point: Point) -> Prepared:
    """The point's launch, from the configuration that the sweep's folder keeps.

    Raises:
        UserError: it is not what it was when the sweep was planned.
    """
    overrides = [*point.overrides, f"name={point.id}", f"runs_dir={sweep.folder}"]
    prepared = prepare(sweep.config, overrides=overrides, cluster=sweep.cluster)
    if prepared.loaded.digest != point.digest:
        raise UserError(
            f"sweep: {sweep.config} was changed since the sweep was started: {point.id} would be "
            f"another run (sha256 {prepared.loaded.digest[:8]}, planned {point.digest[:8]}); "
            "start a new sweep for another configuration"
        )
    return prepared


def start_in_background(sweep: SweepFolder) -> None:
    """Let a process in a session of its own start the points of a local sweep, and see it begin.

    Raises:
        RunError: it ended before it began.
    """
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    environ = job_environment(os.environ, os.pathsep.join([str(IMPORT_ROOT), *inherited]))
    before = len(read_claims(sweep.claims))
    start_detached(
        [sys.executable, "-m", "submitrain", "sweep", "resume", str(sweep.folder), "--wait"],
        log=sweep.folder / LOG_NAME,
        workdir=Path(sweep.record["workdir"]),
        environ=environ,
        started=lambda: len(read_claims(sweep.claims)) > before,
        what="sweep: it",
    )
