"""Whose fault an exception is: the frame to look at, and whether it is another rank's death.

Pure; imports nothing heavy.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType

_VICTIM_SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection was likely closed",
    "connection refused",
    "broken pipe",
    "remote process exited",
    "ncclremoteerror",
    "nccl communicator was aborted",
    "socket timeout",
    "timed out waiting",
    "wait timeout",
    "client socket has timed out",
    "failed to recv",
    "failed to send",
    "rendezvous:",
    "watchdog caught collective operation timeout",
    "application timeout caused pair closure",
    "gloo/transport",
    "gloo connectfullmesh failed",
)
"""Messages of gloo, NCCL and the store when a peer is gone, in lower case."""
_VICTIM_CLASSES = frozenset({"DistNetworkError", "DistStoreError"})
_WORKER_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)


def is_victim(error: BaseException) -> bool:
    """Whether ``error``, or what it came from, looks like the consequence of a peer's death."""
    for one in chain(error):
        classes = {kind.__name__ for kind in type(one).__mro__}
        text = str(one).lower()
        if classes & _VICTIM_CLASSES or any(sign in text for sign in _VICTIM_SIGNS):
            return True
    return False


def chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and the exceptions it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )


def class_name(error: BaseException) -> str:
    """Name of the class, with its module unless it is built in."""
    kind = type(error)
    return (
        kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    )


def where(error: BaseException) -> str:
    """``file:line`` of the innermost frame in the user's code or ours, libraries skipped.

    torch raises what a loader's worker raised again with the worker's traceback in the message: the
    frames in there are nearer to the fault.
    """
    inside = [(m["file"], int(m["line"])) for m in _WORKER_FRAME.finditer(str(error))]
    frames = [*_frames(error.__traceback__), *inside]
    own = [frame for frame in frames if not is_library(frame[0])]
    file, line = (own or frames or [("", 0)])[-1]
    return f"{file}:{line}" if file else ""


def _frames(trace: TracebackType | None) -> list[tuple[str, int]]:
    return [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(trace)]


def is_library(file: str) -> bool:
    """Whether a source file belongs to Python or to an installed package that is not ours."""
    if file.startswith("<"):
        return True
    path = Path(file)
    if any(ours in path.parents for ours in _our_packages()):
        return False
    return any(library in path.parents for library in _libraries())


@cache
def _libraries() -> frozenset[Path]:
    paths = sysconfig.get_paths()
    return frozenset(Path(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib"))


@cache
def _our_packages() -> frozenset[Path]:
    root = Path(__file__).resolve().parent.parent
    return frozenset(root / name for name in ("train", "launcher", "monitor"))
