"""A rank's own watchdog: ends a rank that does not advance when nobody else has ended it.

The supervisor names and ends a hung rank long before. This is for a rank whose supervisor is gone,
frozen or cut off. Two parts, since a thread of Python needs the interpreter lock:

- the heartbeat's thread looks twice a second whether anything advanced; at twice the budget of the
  phase, and some seconds, it dumps all stacks, writes the failure record and leaves. That budget
  is never shorter than what the supervisor may have learned from this run;
- a timer in C (``faulthandler.dump_traceback_later``), set anew with every heartbeat, ends a
  process that holds its lock all the time. It is as long as a collective may take: a suspended job
  that goes on within that time survives, after a longer stand its collectives would fail anyway.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

from submitrain.config import RunConfig
from submitrain.errors import HungError
from submitrain.events import EXIT_HUNG, Kind, Phase
from submitrain.launcher.supervisor.hang import Stall, WatchedClock
from submitrain.launcher.supervisor.rank_events import (
    ENOUGH_STEPS,
    PATIENCE,
    StepTimeStats,
    budget_s,
)
from submitrain.launcher.worker.stacks import class_name, is_library
from submitrain.train.context import RankContext, leave_if_fenced

CEILING = 2.0
"""Times the budget of a phase."""
SUPERVISOR_S = 15.0
"""Seconds more, in which the supervisor looks, asks for stacks and ends all ranks."""
FROZEN_S = 10.0
"""After such a gap this process stood still: another attempt may have taken its place."""
TELL_S = 10.0
"""Seconds for the last words; a file system that hangs must not keep the rank alive."""
LINGER_S = 10.0
"""Seconds between the last words and the end: a supervisor that still lives can ask all ranks where
they stand, since the rank that gives up first may be one that waits."""
STALLED_S = 1.0
"""A line of an event file that takes longer waits for the file system."""
TIMER_EVERY_S = 5.0


@dataclass
class Watchdog:
    """Looks after one rank, from its heartbeat's thread."""

    context: RankContext
    config: RunConfig
    stacks: TextIO
    clock: WatchedClock = field(default_factory=WatchedClock)
    _slowest_s: dict[Phase, float] = field(default_factory=dict)
    _phase: Phase | None = None
    _steps_from: int | None = None
    _learned_for: object = None
    _learned: float | None = None
    _set_for: tuple[Phase | None, float] = (None, 0.0)

    def __post_init__(self) -> None:
        self._stall = Stall(self.clock)
        self.clock.tick(time.monotonic())

    def poll(self, now: float) -> None:
        """Take note of what advanced; end this process if nothing did for too long."""
        if self.context.events.stalled_s() > STALLED_S:
            self.clock.hold(now)  # the run folder takes no line: nobody hangs for that
            self._set_timer(now)
            return
        gap_s = self.clock.tick(now)
        if gap_s > FROZEN_S:
            leave_if_fenced(self.context)
        context = self.context
        before_s, phase = context.idle_s, context.phase
        saved = context.save_progress if phase is Phase.SAVE else 0
        seen = (phase, context.step, context.progress, context.pulses, saved)
        context.idle_s = self._stall.update(seen)
        if context.idle_s < before_s and self._phase is not None:
            self._slowest_s[self._phase] = max(self._slowest_s.get(self._phase, 0.0), before_s)
        self._phase = phase
        if phase is Phase.STEP and self._steps_from is None:
            self._steps_from = context.step
        self._set_timer(now)
        ceiling_s = self.ceiling_s(phase)
        if ceiling_s is None or context.idle_s <= ceiling_s:
            return
        ceiling_s = max(ceiling_s, self._learned_s(seen, phase))
        if context.idle_s > ceiling_s:
            self._end(ceiling_s)

    def close(self) -> None:
        """Stop the timer: training is over."""
        faulthandler.cancel_dump_traceback_later()

    def ceiling_s(self, phase: Phase) -> float | None:
        """Seconds without progress after which this rank ends itself; None = never."""
        limits = self.config.resilience.hang
        limit = limits.limit_s(phase)
        begun = self._steps_from
        known = begun is not None and self.context.step - begun >= ENOUGH_STEPS
        if limit is not None and phase is Phase.STEP and not known:
            first = limits.limit_s(Phase.FIRST_STEP)
            limit = None if first is None else max(limit, first)
        if limit is None:
            return None
        return _ceiling_s(max(limit, PATIENCE * self._slowest_s.get(phase, 0.0)))

    def _learned_s(self, stall: object, phase: Phase) -> float:
        """The same from what the supervisor knows: looked up once in a stall, before the end."""
        if self._learned_for != stall:
            context = self.context
            self._learned_for = stall
            self._learned = budget_s(
                phase,
                StepTimeStats.read(context.run_dir.events(0)),
                self.config.resilience.hang,
                collective_s=self.config.distributed.timeout_s,
            )
        return math.inf if self._learned is None else _ceiling_s(self._learned)

    def _set_timer(self, now: float) -> None:
        phase, set_at = self._set_for
        if phase is self.context.phase and now - set_at < TIMER_EVERY_S:
            return
        limits, beat_s = self.config.resilience.hang, self.config.logging.heartbeat_s
        silence_s = limits.silence_limit_s(self.context.phase, beat_s)
        if silence_s is None:
            faulthandler.cancel_dump_traceback_later()
            return
        self._set_for = (self.context.phase, now)
        timer_s = max(CEILING * silence_s, float(self.config.distributed.timeout_s))
        with suppress(RuntimeError):  # no thread to be had: go on without the timer
            faulthandler.dump_traceback_later(timer_s, exit=True, file=self.stacks)

    def _end(self, ceiling_s: float) -> None:
        """Say all that is known, within a time limit, and leave for good."""
        context = self.context
        error = HungError(
            f"no progress for {context.idle_s:.0f} s in phase {context.phase} (a rank ends itself "
            f"after {ceiling_s:.0f} s), and nobody ended this rank"
        )
        teller = threading.Thread(target=self._tell, args=(error,), daemon=True)
        teller.start()
        teller.join(TELL_S)
        time.sleep(LINGER_S)
        os._exit(EXIT_HUNG)

    def _tell(self, error: HungError) -> None:
        where, text = main_stack()
        self.context.events.write(
            Kind.FAILURE,
            exception=class_name(error),
            message=str(error),
            where=where,
            traceback=text,
            phase=str(self.context.phase),
            step=self.context.step,
            victim=False,
        )
        sys.stderr.write(f"{error}\n")
        for file in (self.stacks, sys.stderr):
            faulthandler.dump_traceback(file=file, all_threads=True)


def main_stack() -> tuple[str, str]:
    """Where the main thread is (``file:line`` of the user's code or ours), and its whole stack."""
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident or 0)
    calls = traceback.extract_stack(frame) if frame is not None else []
    own = [call for call in calls if not is_library(call.filename)]
    last = (own or list(calls))[-1:]
    where = f"{last[0].filename}:{last[0].lineno}" if last else ""
    return where, "".join(traceback.format_list(calls))


def _ceiling_s(limit_s: float) -> float:
    return CEILING * limit_s + SUPERVISOR_S
