"""Where a rank stands: the frame to look at in an exception or a stack dump, and whose fault it is.

Dumps are faulthandler's (CPython, ``_Py_DumpTracebackThreads``): threads from the newest to the
oldest, so the main thread is the last; of each the most recent call comes first. Imports nothing
heavy.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        classes, text = {kind.__name__ for kind in type(one).__mro__}, str(one).lower()
        if classes & _VICTIM_CLASSES or any(sign in text for sign in _VICTIM_SIGNS):
            return True
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return False


def class_name(error: BaseException) -> str:
    """Name of the class, with its module unless it is built in."""
    kind = type(error)
    builtin = kind.__module__ == "builtins"
    return kind.__name__ if builtin else f"{kind.__module__}.{kind.__qualname__}"


def where(error: BaseException) -> str:
    """``file:line`` of the innermost frame in the user's code or ours, libraries skipped.

    torch raises what a loader's worker raised again with the worker's traceback in the message: the
    frames in there are nearer to the fault.
    """
    calls = traceback.extract_tb(error.__traceback__)
    frames = [(call.filename, call.lineno or 0) for call in calls]
    frames += [(m["file"], int(m["line"])) for m in _WORKER_FRAME.finditer(str(error))]
    own = [frame for frame in frames if not is_library(frame[0])]
    file, line = (own or frames or [("", 0)])[-1]
    return f"{file}:{line}" if file else ""


def is_library(file: str) -> bool:
    """Whether a source file belongs to Python or to an installed package that is not ours."""
    if file.startswith("<"):
        return True
    ours, libraries = _our_packages(), _libraries()
    folders = Path(file).parents
    return not any(one in folders for one in ours) and any(one in folders for one in libraries)


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

    def calls(self, function: str, file: str = "") -> bool:
        """Whether it is inside of a function, of a file whose path ends so."""
        return any(one.function == function and one.file.endswith(file) for one in self.frames)

    @property
    def in_collective(self) -> bool:
        """Whether it waits for other ranks: in a collective, or for data that rank 0 prepares."""
        waits = self.calls(_WAITING, _PUBLISH) and not self.calls(_BUILDING, _PUBLISH)
        return waits or (bool(self.frames) and _COLLECTIVE in self.frames[0].file)

    @property
    def in_record(self) -> bool:
        """Whether it waits for the run folder to take a line of an event file."""
        inner = self.frames[:5]
        return any(one.function in _RECORDING and one.file.endswith(_EVENTS) for one in inner)

    @property
    def where(self) -> str:
        """``file:line`` of the innermost frame that is the user's or ours."""
        libraries = [is_library(one.file) or _INSTALLED.search(one.file) for one in self.frames]
        own = [one for one, library in zip(self.frames, libraries, strict=True) if not library]
        frame = next(iter([*own, *self.frames]), None)
        return f"{frame.file}:{frame.line}" if frame else ""


def parse_dump(text: str) -> Stack | None:
    """The last dump in ``text``; None if there is no whole thread in it.

    While the main thread waits for a save to land, the saving thread is the one that matters.
    """
    found: list[list[Frame]] = []
    for line in text.splitlines():
        if _HEADER.match(line):
            found.append([])
        elif found and (match := _FRAME.match(line)):
            found[-1].append(Frame(match["file"], int(match["line"]), match["function"]))
    threads = [Stack(tuple(frames)) for frames in found if frames]
    if not threads:
        return None
    saving = [one for one in threads if one.calls(_SAVING)]
    return saving[-1] if saving and threads[-1].calls(_JOINING) else threads[-1]


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
