"""Watches the ranks of one attempt until all are gone, and asks them to stop when it is time to.

It gathers facts (``AttemptEvidence``); what they mean is ``decide``'s business.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

import structlog

from submitrain.attempts import AttemptWriter
from submitrain.config import RunConfig
from submitrain.errors import FencedError, UserError
from submitrain.events import Event, Kind
from submitrain.launcher.plan.deadlines import LAST_CALL_S, Fit, lead_of
from submitrain.launcher.supervisor.allocation import Allocation
from submitrain.launcher.supervisor.evidence import AttemptEvidence, StopCause
from submitrain.launcher.supervisor.hang_watch import HangWatch
from submitrain.launcher.supervisor.node_failures import NodeWatch
from submitrain.launcher.supervisor.processes import RankGroup
from submitrain.launcher.supervisor.rank_events import RankRecords
from submitrain.launcher.supervisor.srun import step_ended_for
from submitrain.monitor.diagnose import diagnose_run
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.text import last_lines

POLL_S = 0.1
READ_EVERY_S = 1.0
"""Seconds between reads of the run folder: events, cancel request, newer attempts."""
PROGRESS_EVERY_S = 60.0
SETTLE_S = 5.0
"""Seconds to wait for the last events of ranks whose processes ended well (shared file systems)."""
DIAGNOSED_BYTES = 64 * 2**20
"""How much of the ends of all logs together is read for a diagnosis: less than a second's work."""
TAIL_LINES = 20
_STRENGTH = {
    StopCause.WARNED: 1,
    StopCause.TIME_LIMIT: 1,
    StopCause.TERMINATED: 2,
    StopCause.CANCEL: 3,
}

NOTED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCONT)

log = structlog.get_logger(__name__)


class SignalNotes:
    """Which signals this process got. Handlers only write it down."""

    def __init__(self) -> None:
        self._seen: list[signal.Signals] = []

    def install(self) -> None:
        """Take the signals over, from submitit's own handlers too: the supervisor decides."""
        for number in NOTED_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._seen.append(signal.Signals(number))

    @property
    def terminated(self) -> bool:
        """Whether anybody asked this process to end."""
        return signal.SIGTERM in self._seen or signal.SIGINT in self._seen

    @property
    def warnings(self) -> int:
        """How often a warning came: the time limit or a preemption is near."""
        return self._seen.count(signal.SIGUSR2)

    @property
    def names(self) -> list[str]:
        """Names of what came, in order."""
        return [number.name for number in self._seen]


@dataclass
class AttemptWatch:
    """The supervision of one attempt; ``run`` returns when no rank is left."""

    run_dir: RunDir
    config: RunConfig
    allocation: Allocation
    signals: SignalNotes
    attempt: int

    def __post_init__(self) -> None:
        spawner, run_dir = self.allocation.spawner, self.run_dir
        self.records = RankRecords(run_dir, self.attempt, spawner.world_size)
        self.hangs = HangWatch(run_dir, self.config, self.attempt, self.records)
        words, beat_s = run_dir.logs(self.attempt) / "srun.err", self.config.logging.heartbeat_s
        self.nodes = NodeWatch(self.allocation, spawner.nodes, self.records, beat_s, words)
        self.stop_asked: StopCause | None = None
        self.noticed_at: float | None = None
        self._kill_at: float | None = None
        self._next_read = 0.0
        self._next_progress = 0.0
        self._cancelled = False
        self._fenced = False
        self._warnings_seen = 0
        self._preempted = False
        self._lead_told = Fit.FITS

    def run(self) -> AttemptEvidence:
        """Start the ranks, watch them to their end, and say what was seen.

        Raises:
            FencedError: a newer attempt owns the run folder; the ranks are gone.
        """
        group = self.allocation.spawner.start(self.attempt)
        try:
            while True:
                self._read()
                self._leave_if_fenced(group)
                if group.poll():
                    break
                self._notice_end(group)
                self._ask_to_stop(group)
                if self._is_over(group) or self._lost_a_node(group) or self._hangs(group):
                    break
                time.sleep(POLL_S)
        except BaseException:
            group.kill()
            raise
        self._notice_end(group)
        self._settle(group)
        return self._evidence(group)

    def _read(self) -> None:
        """Read the run folder now and then: events, the cancel request, newer attempts."""
        now = time.monotonic()
        if now < self._next_read:
            return
        self._next_read = now + READ_EVERY_S
        self.records.read()
        with suppress(OSError):
            self._cancelled = self._cancelled or self.run_dir.cancel_request.exists()
            self._fenced = self.run_dir.newest_attempt() > self.attempt
        warnings = self.records.warnings + self.signals.warnings
        if warnings != self._warnings_seen:
            # Slurm warns up to a minute early (sbatch(1), --signal), so that obeying it would cost
            # short jobs their whole time: a preemption counts, the time limit is ours to know.
            # When nobody can say what it means, it counts.
            self._warnings_seen = warnings
            job = self.allocation.job()
            self._preempted = job is None or job.preempted_at is not None
            log.info("warned", attempt=self.attempt, obeyed=self._preempted)
        if self.records.last_step is not None and now >= self._next_progress:
            self._next_progress = now + PROGRESS_EVERY_S
            log.info("progress", attempt=self.attempt, step=self.records.last_step)

    def _leave_if_fenced(self, group: RankGroup) -> None:
        """End the own ranks without the scheduler, whose job and steps may be another's by now."""
        if self._fenced:
            group.abandon()
            raise FencedError(
                f"attempt {self.run_dir.newest_attempt()} owns {self.run_dir.run_id}; attempt "
                f"{self.attempt} ended its ranks"
            )

    def _notice_end(self, group: RankGroup) -> None:
        """Note when the end of the attempt began to show: a rank left, or ranks shall leave."""
        if self.noticed_at is None and (self.stop_asked is not None or group.exits()):
            self.noticed_at = round(time.time(), 6)

    def _ask_to_stop(self, group: RankGroup) -> None:
        """Ask once for every new, stronger reason; the strongest one is what the record shows."""
        cause, before = self._stop_cause(), self.stop_asked
        if cause is None or (before is not None and _STRENGTH[cause] <= _STRENGTH[before]):
            return
        self.stop_asked = cause
        at_once, now = cause in (StopCause.CANCEL, StopCause.TERMINATED), time.time()
        if at_once:
            self._kill_at = now + self.allocation.kill_wait_s
        else:
            last_call_s = min(LAST_CALL_S, self.lead_s() / 3)
            self._kill_at = max(now, self.allocation.ends_at() - last_call_s)
        log.warning("stop", attempt=self.attempt, cause=str(cause), signals=self.signals.names)
        with suppress(OSError):
            write_json_atomically(
                self.run_dir.stop_request(self.attempt), {"reason": str(cause), "t": now}
            )
        if at_once:
            group.request_stop(signal.SIGTERM)

    def _stop_cause(self) -> StopCause | None:
        if self._cancelled:
            return StopCause.CANCEL
        if self.signals.terminated:
            return StopCause.TERMINATED
        if time.time() >= self.allocation.ends_at() - self.lead_s():
            return StopCause.TIME_LIMIT
        return StopCause.WARNED if self._preempted else None

    def lead_s(self) -> float:
        """Seconds before the time limit at which the ranks are asked to stop, as of now."""
        lead = lead_of(
            configured=self.config.resilience.stop_lead_s,
            limit_s=self.allocation.limit_s,
            step_s=self.records.step_s,
            save_s=self.records.slowest_save_s,
            unmeasured_s=self.config.slurm.signal_lead_s,
        )
        if lead.fit is not self._lead_told:
            self._lead_told = lead.fit
            if lead.why:
                log.warning("lead", attempt=self.attempt, fit=str(lead.fit), why=lead.why)
                told: Event = {"fit": str(lead.fit), "lead_s": round(lead.seconds, 1)}
                writer = AttemptWriter(self.run_dir, self.allocation.job_id)
                writer.note(Kind.LEAD, self.attempt, why=lead.why, **told)
        return lead.seconds

    def _is_over(self, group: RankGroup) -> bool:
        """Whether to wait no longer for ranks that do not stop; they are gone then, or soon."""
        if self._kill_at is None or time.time() < self._kill_at:
            return False
        log.error("kill", attempt=self.attempt, why="the ranks did not stop in time")
        if not (self.allocation.has_queue and self.signals.terminated):
            group.kill()
        # Else Slurm kills them in a moment, and this process too: a scancel would wait for that
        # (measured: 8 s), so use the time for the last word.
        return True

    def _lost_a_node(self, group: RankGroup) -> bool:
        """End ranks that wait for a lost node: they, and srun at a launch, wait for ever."""
        if self.stop_asked is not None or not self.nodes.poll():
            return False
        log.warning("nodes_lost", attempt=self.attempt, nodes=self.nodes.lost)
        group.kill()
        return True

    def _hangs(self, group: RankGroup) -> bool:
        """End the attempt if a rank hangs; after a death the group ends by itself."""
        hang = self.hangs.poll()
        if hang is None or any(one.died for one in group.exits()):
            return False
        if self.hangs.examine(hang, group.dump_stacks) is None:
            return False
        group.kill()
        return True

    def _settle(self, group: RankGroup) -> None:
        """Read the last events; those of other hosts may take a moment to become visible."""
        died = any(one.died for one in group.exits())
        deadline = time.monotonic() + (0.0 if died or self.signals.terminated else SETTLE_S)
        while True:
            self.records.read(everyone=True)
            if len(self.records.told) >= self.records.world_size or time.monotonic() >= deadline:
                return
            time.sleep(POLL_S)

    def _evidence(self, group: RankGroup) -> AttemptEvidence:
        records, terminated = self.records, self.signals.terminated
        with suppress(OSError):
            self._cancelled = self._cancelled or self.run_dir.cancel_request.exists()
        everyone_finished = len(records.finished) >= records.world_size
        ended_well = len(records.finished | records.stopped) >= records.world_size
        asked = terminated or self._cancelled or self.stop_asked is not None
        lost, accused = self.nodes.conclude(group.exits(), ended_well=ended_well or asked)
        hang = self.hangs.self_ended(group.exits())
        diagnosis = None
        # After a hang or a lost node the logs speak of our own kill.
        if not (ended_well or terminated or hang is not None or lost):
            with suppress(OSError, UserError):  # training must not depend on it
                diagnosis = diagnose_run(
                    self.run_dir.root, attempt=self.attempt, log_bytes=DIAGNOSED_BYTES
                )
        # slurmstepd writes why it ends a step where the first rank of a node writes its errors.
        errors = "\n".join(log_tail(self.run_dir, self.attempt, 0, streams=("err",)))
        return AttemptEvidence(
            attempt=self.attempt,
            world_size=records.world_size,
            first_step=records.first_step,
            last_step=records.last_step,
            started=frozenset(records.started),
            finished=frozenset(records.finished),
            hosts=dict(records.started),
            stopped=frozenset(records.stopped),
            signalled=tuple(records.signalled),
            failures=tuple(records.failures),
            exits=group.exits(),
            hang=hang,
            launcher_code=group.launcher_code(),
            launcher_error=group.launcher_error(),
            lost_nodes=lost,
            accused_nodes=accused,
            terminated=terminated,
            ended_for=step_ended_for(errors),
            stop_asked=self.stop_asked,
            noticed_at=self.noticed_at,
            cancel_requested=self._cancelled,
            job=None if everyone_finished else self.allocation.job(),
            diagnosis=diagnosis,
            has_queue=self.allocation.has_queue,
            restarts_before=self.allocation.restarts,
            remaining_s=self.allocation.ends_at() - time.time(),
            lead_s=self.lead_s(),
            rollback=records.rollback,
            unsaved=tuple(records.unsaved),
            lost_lines=sum(records.dropped.values()),
        )


def log_tail(
    run_dir: RunDir, attempt: int, rank: int, streams: Sequence[str] = ("err", "out")
) -> list[str]:
    """The last lines of the first of a rank's streams that has any; read from the end."""
    found = (last_lines(run_dir.log(attempt, rank, stream), TAIL_LINES) for stream in streams)
    return next((lines for lines in found if lines), [])
