"""Reads stack dumps of ranks: which thread matters, where it stands, whether it waits for others.

Format: faulthandler's (CPython, ``_Py_DumpTracebackThreads``): threads from the newest to the
oldest, so the main thread is the last; of each the most recent call comes first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launcher.blame import is_library

_HEADER = re.compile(r"^(?:Current t|T)hread (?P<ident>0x[0-9a-f]+)")
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$')
_TIMEOUT = "Timeout ("
"""First words of what the interpreter's own watchdog (``dump_traceback_later``) writes."""
_COLLECTIVE = "/torch/distributed/"
_RECORDING, _EVENTS = ("append_line", "write"), "train/events.py"
_WAITING, _BUILDING, _PUBLISH = "build_once", "_publish", "train/data/publish.py"
_SAVING = "write_checkpoint"
_JOINING = "_land"
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
