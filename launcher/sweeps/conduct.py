"""Starts what is missing of a sweep: on Slurm all at once, in lanes; here one after the other.

On Slurm nobody has to stay: a job beyond the limit depends (``afterany``) on the job before it in
its lane, which a requeue does not end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path

from submitrain.errors import RunError, UserError
from submitrain.imports import IMPORT_ROOT
from submitrain.launcher.cli.screen import Screen
from submitrain.launcher.plan.prepare import Prepared, prepare
from submitrain.launcher.run import WAIT_POLL_S, Run
from submitrain.launcher.submit.claims import claim_submission, read_claims, read_submissions
from submitrain.launcher.submit.resume import after_job
from submitrain.launcher.submit.resume import resume as resume_run
from submitrain.launcher.submit.start import start
from submitrain.launcher.submit.submit import job_environment
from submitrain.launcher.sweeps.folder import LOG_NAME, PointState, SweepFolder, point_states
from submitrain.launcher.sweeps.request import Point
from submitrain.run_folder import RunDir
from submitrain.status import RunState
from submitrain.text import last_lines

BACKGROUND_START_S = 60.0
_POLL_S = 0.1


def conduct(sweep: SweepFolder, screen: Screen) -> None:
    """Start every point that is missing; returns when all are submitted, or here have ended.

    Raises:
        UserError: somebody else conducts it, the cluster refuses a job, or nothing can run.
    """
    with claim_submission(sweep.claims, "sweep"), _in_its_folder(sweep):
        _await_cancelled(sweep, screen)
        if sweep.record["cluster"] == "slurm":
            _submit_all(sweep, screen)
        else:
            _one_after_the_other(sweep, screen)


@contextmanager
def _in_its_folder(sweep: SweepFolder) -> Iterator[None]:
    """Relative paths of the configuration mean the folder that the sweep was started in.

    Raises:
        UserError: it is gone.
    """
    workdir = Path(sweep.record["workdir"])
    if not workdir.is_dir():
        raise UserError(f"sweep: expected the folder {workdir} that it was started in, got none")
    with chdir(workdir):
        yield


def _await_cancelled(sweep: SweepFolder, screen: Screen) -> None:
    """Runs that were asked to stop must have stopped before their points can start again."""
    while stopping := [one.point.id for one in point_states(sweep) if one.stopping]:
        screen.doing(f"waits until cancelled runs have saved and ended: {', '.join(stopping)}")
        time.sleep(WAIT_POLL_S["local"])


def _submit_all(sweep: SweepFolder, screen: Screen) -> None:
    states = point_states(sweep)
    lanes: deque[str | None] = deque(_newest_job(one) for one in states if one.alive)
    while len(lanes) < sweep.record["at_once"]:
        lanes.appendleft(None)
    for state in states:
        if state.finished or state.alive:
            continue
        if sweep.cancel_request.exists():
            return
        before = lanes.popleft()
        run = _start(sweep, state, before)
        lanes.append(_job_of(run))
        after = f", after job {before}" if before else ""
        screen.say(f"{state.point.id}: job {lanes[-1]}{after}")


def _newest_job(state: PointState) -> str | None:
    jobs = state.status.job_ids if state.status else ()
    return jobs[-1] if jobs else None


def _job_of(run: Run) -> str | None:
    lines = read_submissions(run.run_dir)
    return str(lines[-1]["job_id"]) if lines else None


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
        _follow(run, screen)
        status = run.status()
        why = f": {status.why}" if status.why and status.state is not RunState.FINISHED else ""
        screen.say(f"  {status.state}{why} ({time.monotonic() - began:.0f} s)")
        if status.user_error and not any(one.finished for one in point_states(sweep)):
            raise UserError(f"sweep: {point.id} failed: {status.why}; no other point was started")


def _follow(run: Run, screen: Screen) -> None:
    while not (status := run.status()).state.ended:
        total = f" of {status.total_steps}" if status.total_steps else ""
        screen.doing(f"{run.run_id}: {status.state}, step {status.step}{total}")
        time.sleep(WAIT_POLL_S["local"])


def _start(sweep: SweepFolder, state: PointState, before: str | None) -> Run:
    """Start a point anew; a run that was cut short goes on where it is not timed."""
    run = _resumed(sweep, state, before) or Run(
        start(_after(_prepared(sweep, state.point), before)).root
    )
    if sweep.cancel_request.exists() and not run.status().state.ended:
        run.cancel()  # whoever cancelled could not see it yet
    return run


def _resumed(sweep: SweepFolder, state: PointState, before: str | None) -> Run | None:
    """The point's old run, gone on with; None where a new one is better.

    A run that is timed is cold again after a stop, so it starts anew.
    """
    timed = sweep.record["mode"] is not None
    if timed or state.folder is None or state.status is None or not state.status.state.ended:
        return None
    run = Run(state.folder)
    resume_run(run, {}, after=before)
    return run


def _prepared(sweep: SweepFolder, point: Point) -> Prepared:
    """The point's launch, from the configuration that the sweep's folder keeps.

    Raises:
        UserError: it is not what it was when the sweep was planned.
    """
    overrides = [*point.overrides, f"name={point.id}", f"runs_dir={sweep.root}"]
    prepared = prepare(sweep.config, overrides=overrides, cluster=sweep.record["cluster"])
    if prepared.loaded.digest != point.digest:
        raise UserError(
            f"sweep: {sweep.config} was changed since the sweep was started: {point.id} would be "
            f"another run (sha256 {prepared.loaded.digest[:8]}, planned {point.digest[:8]}); "
            "start a new sweep for another configuration"
        )
    return prepared


def _after(prepared: Prepared, before: str | None) -> Prepared:
    """The same launch, once the job ``before`` has ended; the configuration does not change."""
    if before is None:
        return prepared
    return replace(prepared, plan=after_job(prepared.plan, before))


def start_in_background(sweep: SweepFolder) -> None:
    """Let a process in a session of its own conduct a local sweep, and see that it began.

    Raises:
        RunError: it ended before it began.
    """
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    environ = job_environment(os.environ, os.pathsep.join([str(IMPORT_ROOT), *inherited]))
    before = len(read_claims(RunDir(sweep.root)))
    log = sweep.root / LOG_NAME
    command = [sys.executable, "-m", "submitrain", "sweep", "resume", str(sweep.root), "--wait"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=sweep.record["workdir"],
            env=environ,
            start_new_session=True,
        )
    # Reaped when it ends, however long this process lives; it outlives this process as well.
    threading.Thread(target=process.wait, name="reap-sweep", daemon=True).start()
    deadline = time.monotonic() + BACKGROUND_START_S
    while len(read_claims(RunDir(sweep.root))) == before:
        if process.poll() is not None:
            said = (last_lines(log, 1) or ["no word"])[0]
            raise RunError(f"sweep: it did not start: {said} ({log})")
        if time.monotonic() > deadline:
            process.kill()
            raise RunError(f"sweep: it did not start in {BACKGROUND_START_S:.0f} s: see {log}")
        time.sleep(_POLL_S)
