"""What one line of an audit ledger says. Imports nothing of this project."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

VERSION = 1


class Act(StrEnum):
    """What was done."""

    LAUNCH = "launch"
    RESUME = "resume"
    CANCEL = "cancel"
    TERMINATE = "terminate"
    REQUEUE = "requeue"
    RESUBMIT = "resubmit"
    CHECKPOINT = "checkpoint"
    """A checkpoint was published."""
    MODEL = "model"
    """The trained model was exported."""
    ALERT = "alert"
    """An alert was raised, resolved, delivered, or given up."""
    EXPORT = "export"
    """This trail was exported."""


DONE, ASKED = "done", "asked"
"""Outcomes without a story; others are ``refused: ...`` and ``unknown: ...``."""


def make_entry(
    act: Act,
    *,
    via: str,
    outcome: str = DONE,
    job_id: str = "",
    attempt: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a line: who, what, when (UTC seconds), with what outcome; no chain yet."""
    return {
        "v": VERSION,
        "t": round(time.time(), 6),
        "act": str(act),
        "outcome": outcome,
        "who": {
            "uid": os.getuid(),
            "user": user_name(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "via": via,
        },
        "job_id": job_id,
        "attempt": attempt,
        "facts": dict(facts or {}),
    }


def user_name() -> str:
    """The user's name, or the uid where it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
