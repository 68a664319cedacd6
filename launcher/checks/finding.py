"""The result of a check, and running checks at the same time with a time limit each.

Standard library only: nodes of a job import this.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeVar

_T = TypeVar("_T")


class Level(StrEnum):
    """How a finding bears on a training, from good to bad."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What a check saw, and what to do about it (empty when nothing is)."""

    id: str
    level: Level
    evidence: str
    remedy: str = ""
    where: str = ""
    """The node or the setting that it is about; empty where the record says so by its shape."""

    def as_json(self) -> dict[str, Any]:
        """Plain values; records keep findings by node, so ``where`` is left out."""
        value = {**asdict(self), "level": str(self.level)}
        del value["where"]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Finding:
        """Read back what ``as_json`` wrote.

        Raises:
            KeyError, ValueError: it is not a finding.
        """
        level = Level(value["level"])
        return cls(str(value["id"]), level, str(value["evidence"]), str(value["remedy"]))


def ok(id: str, evidence: str) -> Finding:
    return Finding(id, Level.OK, evidence)


def warn(id: str, evidence: str, remedy: str) -> Finding:
    return Finding(id, Level.WARN, evidence, remedy)


def fail(id: str, evidence: str, remedy: str) -> Finding:
    return Finding(id, Level.FAIL, evidence, remedy)


def unknown(id: str, evidence: str, remedy: str = "") -> Finding:
    return Finding(id, Level.UNKNOWN, evidence, remedy)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level; ok for no findings."""
    order = list(Level)
    return max((one.level for one in findings), key=order.index, default=Level.OK)


@dataclass(frozen=True)
class Check:
    """Something to find out; ``id`` names the finding when it fails to run or is too slow."""

    id: str
    run: Callable[[], Finding | Iterable[Finding]]
    limit_s: float
    remedy: str = ""
    """What to do when it does not answer."""
    when_late: Callable[[str], Finding] | None = None
    """The finding when it does not answer in time, where that is more than unknown."""


def run_checks(checks: Sequence[Check], *, deadline: float = float("inf")) -> list[Finding]:
    """The findings of all checks, in their order; ``deadline`` in seconds of time.monotonic.

    A check that hangs is left behind in a daemon thread, which does not keep the process from
    ending. What could hang a thread while it holds the interpreter belongs into a child process.
    """
    began = time.monotonic()
    running = [(check, *_start(check)) for check in checks]
    findings: list[Finding] = []
    for check, thread, found in running:
        limit = min(began + check.limit_s, deadline)
        thread.join(max(0.0, limit - time.monotonic()))
        if not thread.is_alive():
            findings += found
            continue
        said = f"no answer within {limit - began:.1f} s"
        late = check.when_late
        findings.append(late(said) if late else unknown(check.id, said, check.remedy))
    return findings


def _start(check: Check) -> tuple[threading.Thread, list[Finding]]:
    found: list[Finding] = []

    def target() -> None:
        try:
            result = check.run()
            found.extend([result] if isinstance(result, Finding) else list(result))
        except FileNotFoundError as error:
            found.append(unknown(check.id, f"{error.filename} is not there", check.remedy))
        except Exception as error:  # one broken check must not cost the answers of the others
            said = f"the check did not run: {type(error).__name__}: {error}"
            found.append(unknown(check.id, said, check.remedy))

    thread = threading.Thread(target=target, name=check.id, daemon=True)
    thread.start()
    return thread, found


def once(read: Callable[[], _T]) -> Callable[[], _T]:
    """``read`` for several checks: the first one runs it, all get its result or its error."""
    lock, future = threading.Lock(), Future[_T]()

    def answer() -> _T:
        with lock:
            if not future.done():
                try:
                    future.set_result(read())
                except Exception as error:
                    future.set_exception(error)
        return future.result()

    return answer
