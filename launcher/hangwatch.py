"""Watches one attempt for ranks that hang, and gathers what tells which one: the acting part.

``hang`` judges, ``pace`` knows the budgets; here are clocks, signals and files. Ages are counted by
this process's own watched time from the moment when a heartbeat *became visible here*: clocks of
other hosts do not matter, nor does time in which this process could not look.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from launcher.evidence import RankExit
from launcher.hang import Hang, RankState, find_hang, name_by_stacks
from launcher.pace import Pace, budget_s
from launcher.records import RankRecords
from launcher.stacks import Stack, ended_by_timer, parse_dump, read_from
from launcher.watched import WatchedClock
from train.config import RunConfig
from train.rundir import RunDir

LOOK_EVERY_S = 1.0
DUMP_WAIT_S = 5.0
"""Seconds for the ranks to write their stacks (a frozen one never does)."""
DUMP_REST_S = 1.5
"""Seconds for a rank that does not beat, after all the others have written theirs."""
DUMP_SETTLE_S = 0.3
PROBE_S = 5.0
"""Seconds in which the run folder must take a file, or its file system is what hangs."""
PROBE_AGAIN_S = 30.0
"""Seconds until the next such try: one that is blocked may leave its thread behind."""
LATE_BEATS = 3
LATE_S = 5.0
"""A rank is late after so many heartbeats, and at least these seconds."""

log = structlog.get_logger(__name__)


@dataclass
class HangWatch:
    """The ranks of one attempt, as seen from here."""

    run_dir: RunDir
    config: RunConfig
    attempt: int
    records: RankRecords
    pace: Pace
    clock: WatchedClock = field(default_factory=WatchedClock)
    found: Hang | None = None
    """The hang for which the ranks were, or are to be, ended."""
    _next: float = 0.0
    _beats: dict[int, tuple[object, float]] = field(default_factory=dict)
    _looks: dict[int, tuple[int, float]] = field(default_factory=dict)

    def look(self) -> Hang | None:
        """The hang that shows by now, if any; cheap, may be called at every turn of a loop."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + LOOK_EVERY_S
        self.clock.tick(now)
        hang = find_hang(self.states(), self.budget_s, self.silence_s)
        if hang is not None and hang.everyone and not folder_takes_files(self._folder):
            self._next = now + PROBE_AGAIN_S
            log.warning("file_system_stalls", attempt=self.attempt, folder=str(self._folder))
            return None
        return hang

    def examine(self, hang: Hang, dump_stacks: Callable[[], None]) -> Hang:
        """Have all ranks dump their stacks, wait a moment for them, and name the culprit."""
        before = {rank: _size(self._stacks(rank)) for rank in self.records.started}
        dump_stacks()
        prompt = {one.rank for one in self.states() if not one.late and not one.told}
        stacks = self._await_dumps(before, prompt & set(before))
        named = name_by_stacks(hang, stacks, self.records.started)
        folder = self._folder / "stacks"
        self.found = replace(named, stacks=str(folder.relative_to(self.run_dir.root)))
        log.error("hang", attempt=self.attempt, why=self.found.describe())
        return self.found

    def self_ended(self, exits: tuple[RankExit, ...]) -> Hang | None:
        """The hang for which a rank ended itself: its own watchdog's word, or the interpreter's."""
        if self.found is not None:
            return self.found
        for one in exits:
            dumped = one.died and not one.ours and ended_by_timer(read_from(self._stacks(one.rank)))
            if dumped:
                why = "it held the interpreter lock until its own timer ended it"
                beat = self.records.heartbeats.get(one.rank)
                return self._own_word(one.rank, beat.phase if beat else "import", why)
        for failure in self.records.failures:
            if failure.kind == "HungError":
                states = self.states()
                behind = [s for s in states if s.passed == min(one.passed for one in states)]
                rank = behind[0].rank if len(behind) < len(states) else failure.rank
                return self._own_word(rank, failure.phase, failure.message)
        return None

    def _own_word(self, rank: int, phase: str, why: str) -> Hang:
        state = next(one for one in self.states() if one.rank == rank)
        stack = parse_dump(read_from(self._stacks(rank)))
        folder = self._folder / "stacks"
        return Hang(
            rank,
            state.host,
            phase,
            state.step,
            state.stalled_s,
            self.budget_s(phase) or 0.0,
            why,
            where=stack.where if stack else "",
            stacks=str(folder.relative_to(self.run_dir.root)),
        )

    def states(self) -> list[RankState]:
        """All ranks as of now."""
        return [self._state(rank) for rank in range(self.records.world_size)]

    def budget_s(self, phase: str) -> float | None:
        """Seconds without progress that a phase may have, as of now."""
        return budget_s(
            phase,
            self.pace,
            self.config.resilience.hang,
            collective_s=self.config.distributed.timeout_s,
        )

    def silence_s(self, phase: str) -> float | None:
        """Seconds without a heartbeat that a phase may have."""
        beat_s = self.config.logging.heartbeat_s
        return self.config.resilience.hang.silence_limit_s(phase, beat_s)

    def _state(self, rank: int) -> RankState:
        silent_s = self._silent_s(rank)
        beat = self.records.heartbeats.get(rank)
        told = rank in self.records.finished | self.records.stopped
        told |= any(failure.rank == rank for failure in self.records.failures)
        phase = beat.phase if beat else "import"
        late_s = max(LATE_S, LATE_BEATS * self.config.logging.heartbeat_s)
        late_s = min(late_s, (self.silence_s(phase) or late_s) / 2)
        return RankState(
            rank=rank,
            host=self.records.started.get(rank, ""),
            phase=phase,
            step=beat.step if beat else 0,
            progress=beat.progress if beat else (0, 0),
            stalled_s=silent_s + (beat.idle_s if beat else 0.0),
            silent_s=silent_s,
            late=silent_s > late_s,
            told=told,
        )

    def _silent_s(self, rank: int) -> float:
        """From the newest heartbeat to the last time that its file could be read."""
        now = self.clock.seconds
        beat, looks = self.records.heartbeats.get(rank), self.records.looks.get(rank, 0)
        if rank not in self._beats or self._beats[rank][0] is not beat:
            self._beats[rank] = (beat, now)
        if rank not in self._looks or self._looks[rank][0] != looks:
            self._looks[rank] = (looks, now)
        return max(0.0, self._looks[rank][1] - self._beats[rank][1])

    @property
    def _folder(self) -> Path:
        return self.run_dir.attempt_dir(self.attempt)

    def _stacks(self, rank: int) -> Path:
        return self.run_dir.stacks(self.attempt, rank)

    def _await_dumps(self, before: dict[int, int], prompt: set[int]) -> dict[int, Stack]:
        """New dumps of the ranks, whole once a file has stopped growing; ``prompt`` ones beat."""
        deadline = time.monotonic() + DUMP_WAIT_S
        sizes, complete = before, False
        while time.monotonic() < deadline:
            time.sleep(DUMP_SETTLE_S)
            grown = {rank: _size(self._stacks(rank)) for rank in before}
            dumped = {rank for rank in before if grown[rank] > before[rank]}
            if grown == sizes and len(dumped) == len(before):
                break
            if dumped >= prompt and not complete:
                complete, deadline = True, min(deadline, time.monotonic() + DUMP_REST_S)
            sizes = grown
        dumps = {rank: parse_dump(read_from(self._stacks(rank), before[rank])) for rank in before}
        return {rank: stack for rank, stack in dumps.items() if stack is not None}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def folder_takes_files(folder: Path, *, within_s: float = PROBE_S) -> bool:
    """Whether a file can be written and read back in time; a thread tries, since it may block."""
    done = threading.Event()
    alive = False

    def attempt() -> None:
        nonlocal alive
        path = folder / f".probe-{os.getpid()}"
        try:
            with path.open("w+b") as file:
                file.write(b"alive")
                file.flush()
                os.fsync(file.fileno())
            alive = path.read_bytes() == b"alive"
            path.unlink()
        except OSError:
            alive = False
        done.set()

    threading.Thread(target=attempt, name="probe", daemon=True).start()
    return done.wait(within_s) and alive
