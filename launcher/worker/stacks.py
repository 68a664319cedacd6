"""Reads stack dumps of ranks: which thread matters, where it stands, whether it waits for others.

Format: faulthandler's (CPython, ``_Py_DumpTracebackThreads``): threads from the newest to the
oldest, so the main thread is the last; of each the most recent call comes first.

Whose fault an exception is: the frame to look at, and whether it is another rank's death.

Pure; imports nothing heavy.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from submitrain.imports import IMPORT_ROOT

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
    links = ("train", "launcher", "monitor")
    package = IMPORT_ROOT / "submitrain"
    return frozenset([package, *((package / name).resolve() for name in links)])


_HEADER = re.compile(r"^(?:Current t|T)hread (?P<ident>0x[0-9a-f]+)")
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$')
_TIMEOUT = "Timeout ("
"""First words of what the interpreter's own watchdog (``dump_traceback_later``) writes."""
_COLLECTIVE = "/torch/distributed/"
_RECORDING, _EVENTS = ("append_line", "write"), "submitrain/events.py"
_WAITING, _BUILDING, _PUBLISH = "build_once", "_publish", "train/data/store.py"
_SAVING = "write_checkpoint"
_JOINING = "_join_save"
_INSTALLED = re.compile(
    r"/(?:site|dist)-packages/(?!(?:train|launcher|monitor)/)"
    r"|/lib/python3[^/]*/(?!(?:site|dist)-packages/)"
)
"""Libraries by the look of their path: in a container Python lives elsewhere than here."""


@dataclass(frozen=True)
class Frame:
    """One call of a stack."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class Stack:
    """The thread of a rank that its progress depends on; innermost call first."""

    frames: tuple[Frame, ...]

    @property
    def in_collective(self) -> bool:
        """Whether it waits for other ranks: in a collective, or for data that rank 0 prepares."""
        if not self.frames:
            return False
        waits = any(one.function == _WAITING and one.file.endswith(_PUBLISH) for one in self.frames)
        builds = any(
            one.function == _BUILDING and one.file.endswith(_PUBLISH) for one in self.frames
        )
        return _COLLECTIVE in self.frames[0].file or (waits and not builds)

    @property
    def in_record(self) -> bool:
        """Whether it waits for the run folder to take a line of an event file."""
        return any(
            frame.function in _RECORDING and frame.file.endswith(_EVENTS)
            for frame in self.frames[:5]
        )

    @property
    def where(self) -> str:
        """``file:line`` of the innermost frame that is the user's or ours."""
        own = [frame for frame in self.frames if not _is_library(frame.file)]
        frame = next(iter([*own, *self.frames]), None)
        return f"{frame.file}:{frame.line}" if frame else ""


def _is_library(file: str) -> bool:
    return is_library(file) or _INSTALLED.search(file) is not None


def parse_dump(text: str) -> Stack | None:
    """The last dump in ``text``; None if there is no whole thread in it.

    While the main thread waits for a save to land, the saving thread is the one that matters.
    """
    threads = _threads(text)
    if not threads:
        return None
    main = threads[-1]
    if any(frame.function == _JOINING for frame in main.frames):
        saving = [one for one in threads if _calls(one, _SAVING)]
        return saving[-1] if saving else main
    return main


def _calls(stack: Stack, function: str) -> bool:
    return any(frame.function == function for frame in stack.frames)


def _threads(text: str) -> list[Stack]:
    threads: list[list[Frame]] = []
    for line in text.splitlines():
        if _HEADER.match(line):
            threads.append([])
        elif threads and (match := _FRAME.match(line)):
            threads[-1].append(Frame(match["file"], int(match["line"]), match["function"]))
    return [Stack(tuple(frames)) for frames in threads if frames]


def ended_by_timer(text: str) -> bool:
    """Whether the interpreter's own watchdog ended this process: its lock was held all the time."""
    return any(line.startswith(_TIMEOUT) for line in text.splitlines())


def read_from(path: Path, offset: int = 0) -> str:
    """What was written to a dump file from ``offset`` on; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
