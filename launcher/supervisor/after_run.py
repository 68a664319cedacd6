"""After the end of a run: its report and the user's hook. Neither changes how the run ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from submitrain.config import RunConfig
from submitrain.events import append_line
from submitrain.monitor.report.page import report_page
from submitrain.monitor.report.read import REPORT_NAME, read_report
from submitrain.run_folder import RUN_DIR_VARIABLE, RunDir, write_text_atomically

KILL_AFTER_S = 5.0
"""From SIGTERM to SIGKILL for a hook that exceeds its time."""
_HOOK_OF_STATE = {"finished": "on_success", "failed": "on_failure"}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Hook:
    """A shell command of the user, and the key that it stands in."""

    key: str
    command: str
    limit_s: float


def follow_up(run_dir: RunDir, config: RunConfig, summary: Mapping[str, Any]) -> None:
    """Write ``reports/report.html``, then run the hook for this state; raises nothing."""
    report = write_report(run_dir)
    hook = hook_for(config, str(summary["state"]))
    if hook is None:
        return
    try:
        outcome = run_hook(run_dir, hook, hook_variables(run_dir, summary, report))
        log.info("hook", **outcome)
    except Exception as error:  # a hook must not change how the run ended
        log.warning("no_hook", hook=hook.key, why=f"{type(error).__name__}: {error}")


def write_report(run_dir: RunDir) -> Path | None:
    """The report's path; None when it could not be written, which only the log tells."""
    path = run_dir.reports / REPORT_NAME
    try:
        path.parent.mkdir(exist_ok=True)
        # The scheduler is not asked: it does not know this job's end yet.
        write_text_atomically(path, report_page(read_report(run_dir.root)))
    except Exception as error:  # a report must not change how the run ended
        log.warning("no_report", why=f"{type(error).__name__}: {error}")
        return None
    return path


def hook_for(config: RunConfig, state: str) -> Hook | None:
    """The hook of a run that ended in ``state``; cancelled and stopped runs have none. Pure."""
    key = _HOOK_OF_STATE.get(state)
    command = getattr(config, key) if key else None
    return Hook(key, command, config.hook_timeout_s) if key and command else None


def hook_variables(
    run_dir: RunDir, summary: Mapping[str, Any], report: Path | None
) -> dict[str, str]:
    """What a hook finds in its environment on top of the job's own. Pure."""
    return {
        RUN_DIR_VARIABLE: str(run_dir.root),
        "SUBMITRAIN_RUN_ID": run_dir.run_id,
        "SUBMITRAIN_REPORT": str(report or ""),
        "SUBMITRAIN_SUMMARY": str(run_dir.summary),
        "SUBMITRAIN_STATE": str(summary["state"]),
        "SUBMITRAIN_CAUSE": str(summary["cause"]),
        "SUBMITRAIN_EXPLANATION": str(summary["explanation"]),
        "SUBMITRAIN_STEP": str(summary.get("step") or 0),
    }


def run_hook(run_dir: RunDir, hook: Hook, variables: Mapping[str, str]) -> dict[str, Any]:
    """Run a hook in the run folder and append its outcome to ``reports/hooks.jsonl``.

    Its output goes to ``reports/<key>.log``. Whoever exceeds the limit is ended with all that it
    started in its session.

    Raises:
        OSError: the outcome or the output cannot be written, or there is no shell.
    """
    run_dir.reports.mkdir(exist_ok=True)
    started = time.time()
    began = time.monotonic()
    with (run_dir.reports / f"{hook.key}.log").open("ab") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", hook.command],
            cwd=run_dir.root,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        timed_out = _wait(process, hook.limit_s)
    outcome = {
        "hook": hook.key,
        "state": variables["SUBMITRAIN_STATE"],
        "code": process.returncode,
        "timed_out": timed_out,
        "took_s": round(time.monotonic() - began, 3),
    }
    append_line(
        run_dir.reports / "hooks.jsonl",
        {"v": 1, "kind": "hook", "t": round(started, 6), **outcome},
    )
    return outcome


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    """Wait for the end; returns whether it had to be forced.

    Then the whole session is signalled: the shell's children too, and those that outlive it.
    """
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_AFTER_S if number == signal.SIGTERM else None)
    return True
