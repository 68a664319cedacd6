"""Watches one attempt for ranks that hang, and gathers what tells which one: the acting part.

``hang`` judges; here are clocks, signals and files. Ages are counted by this process's own watched
time from the moment when a heartbeat *became visible here*: clocks of other hosts do not matter,
nor does time in which this process could not look.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import structlog

from submitrain.config import RunConfig
from submitrain.launcher.supervisor.evidence import RankExit
from submitrain.launcher.supervisor.hang import (
    Hang,
    RankState,
    WatchedClock,
    find_hang,
    name_by_stacks,
    straggler,
)
from submitrain.launcher.supervisor.rank_events import RankRecords, budget_s
from submitrain.launcher.worker.stacks import Stack, ended_by_timer, parse_dump, read_from
from submitrain.run_folder import RunDir

PROBE_EVERY_S = 5.0
JUST_NOW_S = 3.0
STOPPED_S = 4.0
"""A write of a few bytes that takes longer means that the file system stands still."""
POLL_EVERY_S = 1.0
DUMP_WAIT_S = 5.0
"""Seconds for the ranks to write their stacks (a frozen one never does)."""
DUMP_REST_S = 1.5
"""Seconds for a rank that does not beat, after all the others have written theirs."""
DUMP_SETTLE_S = 0.3
PROBE_S = 1.0
"""Seconds to wait for the run folder to take a file before a hang is believed; then look again."""
FOLDER_PATIENCE_S = 600.0
"""Seconds for which a file system that does not answer excuses ranks: a failover of an NFS server
takes minutes, and ranks that were ended would only wait for the same files in their next attempt.
Not for ever: the mount of this node alone may be broken."""
NO_ANSWER = "the file system of the run folder does not answer"
LATE_BEATS = 3
LATE_S = 5.0
"""A rank is late after so many heartbeats, and at least these seconds."""

log = structlog.get_logger(__name__)


@dataclass
class Probe:
    """One small write to a folder, on its way or returned.

    A write to a file system that stands still does not return and cannot be interrupted, so only a
    thread of its own can find out. Uses this machine's clock alone.
    """

    folder: Path
    begun: float = field(default_factory=monotonic)
    took_s: float | None = None
    """None until it has returned."""
    good: bool = False
    """Whether the file was written and could be read back (a full disk: it was not)."""

    def __post_init__(self) -> None:
        self._done = threading.Event()
        threading.Thread(target=self._write, name="probe", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether it returns within these seconds."""
        return self._done.wait(seconds)

    @property
    def age_s(self) -> float:
        """Seconds for which it has been on its way."""
        return monotonic() - self.begun

    def _write(self) -> None:
        path = self.folder / f".probe-{os.getpid()}"
        try:
            with path.open("w+b") as file:
                file.write(b"alive")
                file.flush()
                os.fsync(file.fileno())
            self.good = path.read_bytes() == b"alive"
            path.unlink()
        except OSError:
            self.good = False
        self.took_s = self.age_s
        self._done.set()


@dataclass
class FolderWatch:
    """Whether the file system of a folder answers; never blocks for longer than it is told to."""

    folder: Path
    _probe: Probe | None = None

    def poll(self) -> None:
        """Begin another write if it is time; at most one is on its way."""
        probe = self._probe
        if probe is None or (probe.took_s is not None and probe.age_s >= PROBE_EVERY_S):
            self._probe = Probe(self.folder)

    @property
    def stopped_s(self) -> float:
        """Seconds for which the file system has not answered; 0 while it does."""
        probe = self._probe
        waits = probe is not None and probe.took_s is None and probe.age_s > STOPPED_S
        return probe.age_s if probe is not None and waits else 0.0

    def answers(self, within_s: float) -> Probe | None:
        """A write that has returned just now or does so within these seconds, if there is one."""
        probe = self._probe
        if probe is not None and probe.took_s is not None:
            just_now = probe.age_s - probe.took_s <= JUST_NOW_S
            probe = probe if probe.good and just_now else None
        if probe is None:
            self._probe = probe = Probe(self.folder)
        return probe if probe.wait(within_s) else None

    def over_s(self) -> float:
        """Seconds of a stop that has ended since this was asked last; 0 if there was none."""
        probe = self._probe
        if probe is None or probe.took_s is None or probe.took_s <= STOPPED_S:
            return 0.0
        self._probe = Probe(self.folder)
        return probe.took_s


@dataclass
class HangWatch:
    """The ranks of one attempt, as seen from here."""

    run_dir: RunDir
    config: RunConfig
    attempt: int
    records: RankRecords
    clock: WatchedClock = field(default_factory=WatchedClock)
    found: Hang | None = None
    """The hang for which the ranks were, or are to be, ended."""
    _next: float = 0.0
    _anew_from: float = -math.inf
    """From then on every rank has its whole budget again: what was blocked has to move on."""
    _excused: tuple[int | None, float, float] = (None, -math.inf, -math.inf)
    """Newest step at the last sign that the file system stops; first and last such sign."""
    _beats: dict[int, tuple[object, float]] = field(default_factory=dict)
    _reads: dict[int, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attempt_dir = self.run_dir.attempt_dir(self.attempt)
        self.folder = FolderWatch(attempt_dir)
        self._stacks_folder = str((attempt_dir / "stacks").relative_to(self.run_dir.root))

    def poll(self) -> Hang | None:
        """The hang that shows by now, if any; cheap, may be called at every turn of a loop."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + POLL_EVERY_S
        if stop_s := self.folder.over_s():
            log.warning("file_system_stood_still", attempt=self.attempt, seconds=round(stop_s, 1))
            self.clock.hold(now)
            if self._may_excuse(now):
                self._anew_from = self.clock.seconds
        self.folder.poll()
        if self.folder.stopped_s and self._may_excuse(now):
            self.clock.hold(now)
            return None
        self.clock.tick(now)
        hang = self._self_reported_hang() or find_hang(self.states(), self.budget_s, self.silence_s)
        return None if hang is None else self._believed(hang, now)

    def _believed(self, hang: Hang, now: float) -> Hang | None:
        """A hang counts when the run folder takes a file now: else that is why nobody advances."""
        probe = self.folder.answers(PROBE_S)
        if probe is None or (probe.took_s or 0.0) > STOPPED_S:
            if self._may_excuse(now):
                return None
            why = f"{hang.why}; {NO_ANSWER} for {self.folder.stopped_s:.0f} s"
            return replace(hang, why=why)
        return None if hang.everyone and not probe.good else hang

    def _may_excuse(self, now: float) -> bool:
        """Whether the file system may still be the reason: not for too long without a new step.

        A calm as long as that ends the account, too.
        """
        step, (known, first, last) = self.records.last_step, self._excused
        if step != known or now - last >= FOLDER_PATIENCE_S:
            first = now
        self._excused = (step, first, now)
        return now - first < FOLDER_PATIENCE_S

    def examine(self, hang: Hang, dump_stacks: Callable[[], None]) -> Hang | None:
        """Have all ranks dump their stacks, wait a moment for them, and name the culprit.

        None if the culprit was writing an event: the file system let it go only now, so it has to
        show whether it moves on.
        """
        gone = {failure.rank for failure in self.records.failures}
        asked = {rank: host for rank, host in self.records.started.items() if rank not in gone}
        before = {rank: _size(self.run_dir.stacks(self.attempt, rank)) for rank in asked}
        dump_stacks()
        prompt = {one.rank for one in self.states() if not one.late and not one.told}
        self._await_dumps(before, prompt & set(before))
        stacks = self._stacks(before)
        named = name_by_stacks(hang, {**self._last_words(), **stacks}, asked)
        culprits = stacks if named.rank is None else {named.rank: stacks.get(named.rank)}
        if any(stack is not None and stack.in_record for stack in culprits.values()):
            if self._may_excuse(time.monotonic()):
                self._anew_from = self.clock.seconds
                return None
            named = replace(named, why=f"{named.why}; {NO_ANSWER}")
        self.found = replace(named, stacks=self._stacks_folder)
        log.error("hang", attempt=self.attempt, why=self.found.describe())
        return self.found

    def self_ended(self, exits: tuple[RankExit, ...]) -> Hang | None:
        """The hang for which a rank ended itself: its own watchdog's word, or the interpreter's."""
        if self.found is not None:
            return self.found
        for one in exits:
            text = read_from(self.run_dir.stacks(self.attempt, one.rank))
            if one.died and not one.ours and ended_by_timer(text):
                stack = parse_dump(text)
                why = "it held the interpreter lock until its own timer ended it"
                state = self._state(one.rank)
                locked = state.hang(state.stalled_s, self.budget_s(state.phase) or 0.0, why)
                where = stack.where if stack else ""
                return replace(locked, where=where, stacks=self._stacks_folder)
        hang, words = self._self_reported_hang(), self._last_words()
        if hang is None:
            return None
        hosts = {rank: self.records.started[rank] for rank in words}
        return replace(name_by_stacks(hang, words, hosts), stacks=self._stacks_folder)

    def _self_reported_hang(self) -> Hang | None:
        """A rank's own watchdog gave up: that rank may well be the one that waits for another."""
        failure = next((one for one in self.records.failures if one.kind == "HungError"), None)
        if failure is None:
            return None
        states = self.states()
        named, own = straggler(states), states[failure.rank]
        one = named or own
        why = f"rank {failure.rank} gave up: {failure.message}"
        stalled_s, limit = max(one.stalled_s, own.stalled_s), self.budget_s(one.phase) or 0.0
        return one.hang(stalled_s, limit, why, named=named is not None)

    def _last_words(self) -> dict[int, Stack]:
        """Stacks of the ranks whose own watchdog gave up."""
        gone = [one.rank for one in self.records.failures if one.kind == "HungError"]
        return self._stacks(dict.fromkeys(gone, 0))

    def _stacks(self, offsets: Mapping[int, int]) -> dict[int, Stack]:
        """The last dumps of these ranks, in what was written from the offsets on."""
        dumps = {
            rank: parse_dump(read_from(self.run_dir.stacks(self.attempt, rank), offset))
            for rank, offset in offsets.items()
        }
        return {rank: stack for rank, stack in dumps.items() if stack is not None}

    def _await_dumps(self, before: dict[int, int], prompt: set[int]) -> None:
        """Wait for new dumps: one is whole once its file has stopped growing; ``prompt`` beat."""
        deadline = time.monotonic() + DUMP_WAIT_S
        sizes, complete = before, False
        while time.monotonic() < deadline:
            time.sleep(DUMP_SETTLE_S)
            grown = {rank: _size(self.run_dir.stacks(self.attempt, rank)) for rank in before}
            dumped = {rank for rank in before if grown[rank] > before[rank]}
            if grown == sizes and len(dumped) == len(before):
                return
            if dumped >= prompt and not complete:
                complete, deadline = True, min(deadline, time.monotonic() + DUMP_REST_S)
            sizes = grown

    def budget_s(self, phase: str) -> float | None:
        """Seconds without progress that a phase may have, as of now."""
        collective_s = self.config.distributed.timeout_s
        limits = self.config.resilience.hang
        return budget_s(phase, self.records.times, limits, collective_s=collective_s)

    def silence_s(self, phase: str) -> float | None:
        """Seconds without a heartbeat that a phase may have."""
        beat_s = self.config.logging.heartbeat_s
        return self.config.resilience.hang.silence_limit_s(phase, beat_s)

    def states(self) -> list[RankState]:
        """All ranks as of now."""
        return [self._state(rank) for rank in range(self.records.world_size)]

    def _state(self, rank: int) -> RankState:
        anew_s = self.clock.seconds - self._anew_from
        silent_s = min(anew_s, self._silent_s(rank))
        beat = self.records.heartbeats.get(rank)
        phase = beat.phase if beat else "import"
        late_s = max(LATE_S, LATE_BEATS * self.config.logging.heartbeat_s)
        late_s = min(late_s, (self.silence_s(phase) or late_s) / 2)
        return RankState(
            rank=rank,
            host=self.records.started.get(rank, ""),
            phase=phase,
            step=beat.step if beat else 0,
            progress=beat.progress if beat else (0, 0),
            stalled_s=min(anew_s, silent_s + (beat.idle_s if beat else 0.0)),
            silent_s=silent_s,
            late=silent_s > late_s,
            told=rank in self.records.told,
        )

    def _silent_s(self, rank: int) -> float:
        """From the newest heartbeat to the last time that its file could be read."""
        now = self.clock.seconds
        beat, reads = self.records.heartbeats.get(rank), self.records.reads.get(rank, 0)
        if rank not in self._beats or self._beats[rank][0] is not beat:
            self._beats[rank] = (beat, now)
        if rank not in self._reads or self._reads[rank][0] != reads:
            self._reads[rank] = (reads, now)
        return max(0.0, self._reads[rank][1] - self._beats[rank][1])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
