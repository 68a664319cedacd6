"""What is typed on a terminal, as the names of keys."""

from __future__ import annotations

import os
import re
import select
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Key(StrEnum):
    """A key that means something here."""

    UP = "up"
    DOWN = "down"
    LEFT = "left"
    RIGHT = "right"
    FIRST = "first"
    LAST = "last"
    OPEN = "open"
    BACK = "back"
    QUIT = "quit"


_KEYS = {
    "k": Key.UP,
    "\x1b[A": Key.UP,
    "\x1bOA": Key.UP,
    "j": Key.DOWN,
    "\x1b[B": Key.DOWN,
    "\x1bOB": Key.DOWN,
    "h": Key.LEFT,
    "\x1b[D": Key.LEFT,
    "\x1bOD": Key.LEFT,
    "l": Key.RIGHT,
    "\x1b[C": Key.RIGHT,
    "\x1bOC": Key.RIGHT,
    "g": Key.FIRST,
    "\x1b[H": Key.FIRST,
    "\x1bOH": Key.FIRST,
    "\x1b[1~": Key.FIRST,
    "G": Key.LAST,
    "\x1b[F": Key.LAST,
    "\x1bOF": Key.LAST,
    "\x1b[4~": Key.LAST,
    "\r": Key.OPEN,
    "\n": Key.OPEN,
    "\x1b": Key.BACK,
    "\x7f": Key.BACK,
    "q": Key.QUIT,
    "Q": Key.QUIT,
}
_ONE = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|.", re.S)


def keys_of(data: bytes) -> list[Key]:
    """The keys in what a terminal sent at once; others mean nothing."""
    found = _ONE.findall(data.decode(errors="replace"))
    return [_KEYS[one] for one in found if one in _KEYS]


@contextmanager
def key_by_key(descriptor: int) -> Iterator[None]:
    """The terminal hands over each key at once and does not show it; as before at the end."""
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read_keys(descriptor: int, timeout_s: float) -> list[Key]:
    """Wait for keys; a terminal that is gone is the same as ``q``."""
    ready, _, _ = select.select([descriptor], [], [], timeout_s)
    if not ready:
        return []
    try:
        data = os.read(descriptor, 256)
    except OSError:
        data = b""
    return keys_of(data) if data else [Key.QUIT]
