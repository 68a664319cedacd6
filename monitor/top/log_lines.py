"""The newest lines of a run's logs, fit for a terminal. Reads the ends of files only."""

from __future__ import annotations

import re
from pathlib import Path

from train.rundir import RunDir

TAIL_BYTES = 64 * 1024
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def log_files(folder: Path) -> list[Path]:
    """Logs of the newest attempt that hold something, by rank; before it, those of the job."""
    run_dir = RunDir(folder)
    attempt = run_dir.newest_attempt()
    ranks = sorted(run_dir.logs(attempt).glob("rank*.*")) if attempt else []
    files = [path for path in ranks if _size(path)]
    return files or [path for path in sorted(run_dir.submitit.glob("*_log.*")) if _size(path)]


def newest_lines(path: Path, count: int) -> list[str]:
    """The last lines; of a progress bar its last state, without escapes and control characters."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]
    lines = [_clean(line) for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def _clean(line: str) -> str:
    states = [state for state in _ESCAPES.sub("", line).split("\r") if state.strip()]
    return _CONTROL.sub("", states[-1]).expandtabs().rstrip() if states else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
