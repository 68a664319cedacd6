"""What a rank does around training: identity, heartbeat, failure record. No torch here."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TextIO

from submitrain.config.resolve import load_resolved
from submitrain.events import EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, Kind
from submitrain.imports import gc_paused
from submitrain.launcher.supervisor.processes import JOB_ID_VARIABLE, PARENT_VARIABLE
from submitrain.launcher.worker.stacks import class_name, is_victim, where
from submitrain.launcher.worker.watchdog import Watchdog
from submitrain.processes import boot_id
from submitrain.run_folder import ATTEMPT_VARIABLE, RUN_DIR_VARIABLE, RunDir
from submitrain.signals import StopFlag, tolerate_log_write_errors
from submitrain.train import faults
from submitrain.train.context import RankContext, background_beat

ENTRY_VARIABLE = "SUBMITRAIN_RANK_MODULE"
DEFAULT_ENTRY = "submitrain.train.recipe"
OWN_ENTRY = "submitrain.train.user_function.main"
"""Calls the training function that the configuration's ``entry`` names."""
MAX_TEXT = 20_000
_PR_SET_PDEATHSIG = 1
_OUR_VARIABLES = (
    *("SUBMITRAIN_RANK", "SUBMITRAIN_WORLD_SIZE"),
    *("SUBMITRAIN_LOCAL_RANK", "SUBMITRAIN_LOCAL_WORLD_SIZE"),
)
_SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
"""rank, world size, local rank and local world size."""


def run_rank(flag: StopFlag) -> int:
    """Run this process's rank; returns its exit code (see ``submitrain.events``)."""
    end_with_parent(os.environ)
    tolerate_log_write_errors()
    context = context_of(os.environ, flag)
    with open_stacks(context) as stacks:
        faulthandler.enable(stacks)
        # A handler in C: it works while Python is stuck in a collective.
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
        announce(context)
        try:
            faults.arm(context)
            faults.at(faults.Moment.START)
            return run_entry(context, stacks)
        except BaseException as error:  # the user's code may raise anything, SystemExit included
            record_failure(context, error)
            return EXIT_FAILED


def run_entry(context: RankContext, stacks: TextIO) -> int:
    """Load the configuration, beat, and call the training entry.

    Raises:
        RuntimeError: the entry returned something that is no exit code of ours.
    """
    config = load_resolved(context.run_dir.config, os.environ)
    watchdog = Watchdog(context, config, stacks)
    with (
        closing(watchdog),
        background_beat(context, config.logging.heartbeat_s, watchdog.poll),
    ):
        with gc_paused():
            usual = OWN_ENTRY if config.entry is not None else DEFAULT_ENTRY
            entry = importlib.import_module(os.environ.get(ENTRY_VARIABLE, usual))
        code = entry.main(context, config)
    if code not in (EXIT_FINISHED, EXIT_STOPPED):
        raise RuntimeError(
            f"{entry.__name__}.main: expected exit code {EXIT_FINISHED} (finished) or "
            f"{EXIT_STOPPED} (stopped), got {code!r}"
        )
    return int(code)


def context_of(environ: Mapping[str, str], flag: StopFlag) -> RankContext:
    """Who this process is: by our own variables, else by those of srun's task.

    Raises:
        KeyError: neither is there, so this process was not started by a supervisor.
    """
    ours = "SUBMITRAIN_RANK" in environ
    rank, world_size, local_rank, local_world_size = (
        int(environ[name]) for name in (_OUR_VARIABLES if ours else _SLURM_VARIABLES)
    )
    return RankContext(
        run_dir=RunDir(Path(environ[RUN_DIR_VARIABLE])),
        attempt=int(environ[ATTEMPT_VARIABLE]),
        job_id=environ[JOB_ID_VARIABLE],
        stop=flag,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
    )


def end_with_parent(environ: Mapping[str, str]) -> None:
    """Local ranks die with their supervisor (prctl(2)); a remote task's slurmstepd sees to it."""
    parent = environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        # It died between the fork and the prctl.
        os._exit(EXIT_FAILED)


def open_stacks(context: RankContext) -> TextIO:
    """File for this rank's stack dumps, on request (SIGUSR1) or after a crash."""
    path = context.run_dir.stacks(context.attempt, context.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def announce(context: RankContext) -> None:
    """Write the ``start`` event: from now on the supervisor knows that this rank exists."""
    context.events.write(
        Kind.START,
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        pid=os.getpid(),
        world_size=context.world_size,
        local_rank=context.local_rank,
        step_id=os.environ.get("SLURM_STEP_ID"),
        machine=boot_id(),
    )


def record_failure(context: RankContext, error: BaseException) -> None:
    """Write the ``failure`` event, and the traceback to standard error for people."""
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(text)
    context.events.write(
        Kind.FAILURE,
        exception=class_name(error),
        message=str(error)[:MAX_TEXT],
        where=where(error),
        traceback=text[-MAX_TEXT:],
        phase=str(context.phase),
        step=context.step,
        victim=is_victim(error),
    )
