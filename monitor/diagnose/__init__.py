"""From logs to the cause of a failure: any trainer's logs, or a run folder of ours.

``diagnose_text``, ``diagnose_files`` and ``diagnose_run`` are the ways in. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from submitrain.monitor.diagnose.cause import diagnose
from submitrain.monitor.diagnose.model import (
    Diagnosis,
    FailureClass,
    Finding,
    Moment,
    Remedy,
    Trust,
)
from submitrain.monitor.diagnose.run import diagnose_run, kind_of_exception
from submitrain.monitor.diagnose.scan import scan_file, scan_text

__all__ = [
    "Diagnosis",
    "FailureClass",
    "Finding",
    "Moment",
    "Remedy",
    "Trust",
    "diagnose",
    "diagnose_files",
    "diagnose_run",
    "diagnose_text",
    "kind_of_exception",
    "scan_file",
    "scan_text",
]


def diagnose_text(text: str, *, name: str = "") -> Diagnosis:
    """The diagnosis of one log or excerpt."""
    return diagnose(scan_text(text, name=name))


def diagnose_files(paths: Iterable[Path]) -> Diagnosis:
    """One diagnosis of all logs of one job.

    Raises:
        OSError: a file cannot be read.
    """
    return diagnose([one for path in paths for one in scan_file(path)])
