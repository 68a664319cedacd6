"""Reads in the background, so that keys are answered while a file system or scheduler is slow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Calls ``read`` every ``interval_s`` seconds, and when poked; keeps the newest value."""

    def __init__(self, read: Callable[[], T], first: T, *, interval_s: float) -> None:
        self._read, self._interval_s = read, interval_s
        self._poked = threading.Event()
        self.value = first
        self.problem = ""
        threading.Thread(target=self._go_on, daemon=True).start()

    def poke(self) -> None:
        """Read again now."""
        self._poked.set()

    def _go_on(self) -> None:
        while True:
            try:
                self.value, self.problem = self._read(), ""
            except OSError as error:
                self.problem = str(error)
            self._poked.wait(self._interval_s)
            self._poked.clear()
