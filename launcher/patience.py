"""Outlasts a shared file system that fails for a while: an NFS failover, a full disk, a quota."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
import tenacity

PATIENCE_S = 600.0
"""Seconds until an error of the file system is taken for final."""
PAUSE_S = 5.0

_T = TypeVar("_T")
log = structlog.get_logger(__name__)


def patiently(
    call: Callable[[], _T], *, patience_s: float = PATIENCE_S, pause_s: float = PAUSE_S
) -> _T:
    """``call`` until it works; for what a supervisor cannot go on without.

    Raises:
        OSError: it still failed after ``patience_s`` seconds.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OSError),
        stop=tenacity.stop_after_delay(patience_s),
        wait=tenacity.wait_fixed(pause_s),
        before_sleep=_tell,
        reraise=True,
    )
    return retrying(call)


def _tell(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("run_folder_fails", error=str(error), tries=state.attempt_number)
