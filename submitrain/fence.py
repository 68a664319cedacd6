"""Fencing: an attempt may publish nothing any more once a newer one owns the run folder.

An attempt is owned by whoever made its folder (mkdir is atomic). A process that was frozen, or sat
on a node that was thought lost, may go on between any two of its instructions, so a check alone
proves nothing about the next system call. Hence three rules:

- what is published is first complete under a name that carries the attempt, and a newer attempt
  takes that name away (``CheckpointFolders.revoke``) before it looks what there is: a rename that
  comes late fails;
- what is moved out of the way is moved back when the fence is found closed afterwards;
- readers skip a line of an older attempt that follows one of a newer attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from submitrain.errors import FencedError


@dataclass(frozen=True)
class Fence:
    """One attempt's own number, and whether a newer attempt has taken its place."""

    attempt: int = 0
    closed: Callable[[], bool] = lambda: False

    def check(self, what: str) -> None:
        """Refuse to go on.

        Raises:
            FencedError: a newer attempt owns the run folder.
        """
        if self.closed():
            raise FencedError(
                f"attempt {self.attempt} may not {what}: a newer attempt owns the run folder; "
                "this one ends"
            )

    @contextmanager
    def moved_aside(self, path: Path, aside: Path) -> Iterator[None]:
        """Have ``path`` out of the way (if it is there); back again after an error or a fence.

        Raises:
            FencedError: a newer attempt owns the run folder; what was moved is back in place.
            OSError: it could not be moved.
        """
        self.check(f"move {path}")
        moved = True
        try:
            path.rename(aside)
        except FileNotFoundError:
            moved = False
        try:
            self.check(f"replace {path}")
            yield
        except BaseException:
            # rename(2) refuses where a newer attempt has put a whole folder there meanwhile.
            with suppress(OSError):
                if moved:
                    aside.rename(path)
            raise
