"""Turns what the newest poll saw into Prometheus metrics. Reads nothing: a scrape costs no query.

Bounded: the number of runs is (``--max-runs``), nodes of a run are, and a run's metrics carry its
name only; account, attempt, job and nodes are labels of the info metrics, to be joined in.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from submitrain.errors import UserError
from submitrain.monitor.accounting.goodput import Goodput, read_goodput
from submitrain.monitor.watch.fleet import FleetView, RunView
from submitrain.status import RunState, RunStatus

FRESH_S = 120.0
PATIENCE = 100.0
TICK_S = 0.2
"""Seconds a poll may spend on accounts; what is left comes with the next poll."""


class Accounts:
    """Accounts of time by run id, each read again only when that costs little; asks no scheduler.

    An account needs every event of rank 0, which may be a large file. After one was read again, no
    other is until 100 times as long has passed as that took, a hundredth of a core; those that were
    never read come a few at each poll.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: dict[str, tuple[Goodput, float, bool]] = {}
        self._unreadable: dict[str, float] = {}
        """When to try again."""
        self._free_at = float("-inf")

    def update(self, runs: Sequence[RunStatus]) -> dict[str, Goodput]:
        """Read those that are due; returns what is known of these runs."""
        names = {one.run_id for one in runs}
        self._found = {name: value for name, value in self._found.items() if name in names}
        deadline = self._clock() + TICK_S
        for status in sorted(runs, key=self._due_at):
            if self._clock() > deadline:
                break
            new = self._due_at(status) == float("-inf")
            if new or max(self._free_at, self._due_at(status)) <= self._clock():
                began = self._clock()
                self._read(status)
                if not new:
                    self._free_at = self._clock() + PATIENCE * (self._clock() - began)
        return {name: value for name, (value, _, _) in self._found.items()}

    def _due_at(self, status: RunStatus) -> float:
        if status.run_id in self._unreadable:
            return self._unreadable[status.run_id]
        _, due_at, ended = self._found.get(status.run_id, (None, float("-inf"), False))
        return due_at if ended == status.state.ended else float("-inf")

    def _read(self, status: RunStatus) -> None:
        ended, pending = status.state.ended, status.state is RunState.QUEUED
        self._unreadable.pop(status.run_id, None)
        try:
            goodput = read_goodput(Path(status.folder), ended=ended, pending=pending, run=None)
        except (OSError, UserError):
            self._unreadable[status.run_id] = self._clock() + FRESH_S
            return
        due_at = float("inf") if ended else self._clock() + FRESH_S
        self._found[status.run_id] = goodput, due_at, ended


PREFIX = "submitrain"
MAX_NODES = 256
"""Nodes of one run that get metrics of their own."""
Reading = Callable[[RunStatus], float | None]
_NUMBERS: tuple[tuple[str, str, Reading], ...] = (
    ("attempt", "Number of the newest attempt.", lambda s: s.attempt),
    ("step", "Newest optimizer step.", lambda s: s.step),
    ("steps_planned", "Optimizer steps that are planned.", lambda s: s.total_steps),
    ("loss", "Training loss per token of the newest step.", lambda s: s.loss),
    ("validation_loss", "Newest validation loss per token.", lambda s: s.validation_loss),
    ("learning_rate", "Learning rate of the newest step.", lambda s: s.lr),
    ("tokens_per_second", "Tokens per second over all ranks.", lambda s: s.tokens_per_s),
    ("step_duration_seconds", "Duration of the newest step.", lambda s: s.step_s),
    ("memory_bytes", "Peak memory of rank 0's device.", lambda s: s.mem_bytes),
    ("eta_seconds", "Seconds until the last step, at the recent pace.", lambda s: s.eta_s),
    ("nodes", "Nodes of the newest attempt.", lambda s: len(s.nodes) or None),
    ("submitted_timestamp_seconds", "Time of the newest submission.", lambda s: s.submitted_at),
    (
        "last_activity_timestamp_seconds",
        "When rank 0 last gave a sign of life.",
        lambda s: s.last_activity_at,
    ),
    (
        "last_progress_timestamp_seconds",
        "When rank 0 last advanced.",
        lambda s: s.last_progress_at,
    ),
    ("ended_timestamp_seconds", "When the run ended.", lambda s: s.ended_at),
    ("skipped_steps", "Recent steps whose update was left out.", lambda s: s.skipped_steps),
    ("rollbacks", "How often the run went back and left data out.", lambda s: s.rollbacks),
    ("checkpoints", "Published checkpoints that are kept.", lambda s: len(s.checkpoints)),
    (
        "checkpoint_step",
        "Step of the newest checkpoint.",
        lambda s: s.checkpoints[-1] if s.checkpoints else None,
    ),
    (
        "checkpoint_timestamp_seconds",
        "When the newest checkpoint was published.",
        lambda s: s.checkpoint_at,
    ),
    ("checkpoint_bytes", "Size of the newest checkpoint.", lambda s: s.checkpoint_bytes),
    ("checkpoint_save_seconds", "How long saving it took.", lambda s: s.checkpoint_save_s),
)


@dataclass
class Exported:
    """What is served now; replaced as a whole by every poll."""

    fleet: FleetView = field(default_factory=lambda: FleetView(0.0, 0.0))
    accounts: Mapping[str, Goodput] = field(default_factory=dict)
    polls: int = 0
    failed_polls: int = 0


class RunCollector(Collector):
    """Serves ``exported``, which the next poll replaces."""

    def __init__(self) -> None:
        self.exported = Exported()

    def collect(self) -> Iterator[Metric]:
        """Every metric, those without a sample included."""
        now = self.exported
        runs = now.fleet.runs
        yield from _states(runs)
        for name, text, read in _NUMBERS:
            family = _gauge(name, text, "run")
            for view in runs:
                if (value := read(view.status)) is not None:
                    family.add_metric([_label(view.status.run_id)], value)
            yield family
        yield from _causes(runs)
        yield from _nodes(runs)
        yield from _times(runs, now.accounts)
        yield from _itself(now)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)


def _label(value: str) -> str:
    """A name of the file system need not be UTF-8; the answer to Prometheus has to be."""
    return value.encode(errors="replace").decode()


def _states(runs: Iterable[RunView]) -> Iterator[Metric]:
    names = ("run", "attempt", "job", "user", "account", "partition", "cluster")
    info = _gauge("run_info", "Always 1: whose run it is, to join with other metrics.", *names)
    states = _gauge("run_state", "1 for the state a run is in, 0 for others.", "run", "state")
    for view in runs:
        s = view.status
        job = s.job_ids[-1] if s.job_ids else ""
        values = (s.run_id, str(s.attempt), job, s.user, s.account, s.partition, s.cluster)
        info.add_metric([_label(value) for value in values], 1)
        for state in RunState:
            states.add_metric([_label(s.run_id), str(state)], float(s.state is state))
    yield from (info, states)


def _causes(runs: Iterable[RunView]) -> Iterator[Metric]:
    restarts = CounterMetricFamily(
        f"{PREFIX}_restarts",
        "Attempts that another one followed, by the cause of their end.",
        labels=["run", "cause"],
    )
    text = "Alerts that `monitor watch` holds to be firing."
    alerts = _gauge("alerts_firing", text, "run", "rule", "severity")
    for view in runs:
        run = _label(view.status.run_id)
        for cause, count in view.status.restarts.items():
            restarts.add_metric([run, _label(cause)], count)
        firing = Counter((str(one.rule), str(one.severity)) for one in view.alerts)
        for (rule, severity), count in firing.items():
            alerts.add_metric([run, rule, severity], count)
    yield from (restarts, alerts)


def _nodes(runs: Iterable[RunView]) -> Iterator[Metric]:
    labels = ("run", "attempt", "node")
    ranks = _gauge("node_ranks", "Ranks of the newest attempt on a node.", *labels)
    text = "When the slowest rank of a node last advanced."
    progress = _gauge("node_last_progress_timestamp_seconds", text, *labels)
    steps = _gauge("node_step", "Step of the slowest rank of a node.", *labels)
    for view in runs:
        by_node = defaultdict(list)
        for rank in view.ranks:
            by_node[rank.host].append(rank)
        for node in sorted(by_node)[:MAX_NODES]:
            members = by_node[node]
            values = [_label(view.status.run_id), str(view.status.attempt), _label(node)]
            ranks.add_metric(values, len(members))
            progress.add_metric(values, min(one.progress_at for one in members))
            steps.add_metric(values, min(one.step for one in members))
    yield from (ranks, progress, steps)


def _times(runs: Iterable[RunView], accounts: Mapping[str, Goodput]) -> Iterator[Metric]:
    text = "What the ranks' allocated time was spent on, in rank-seconds."
    seconds = _gauge("goodput_seconds", text, "run", "category")
    queued = _gauge("queued_seconds", "Time in the queue.", "run")
    gpus = _gauge("gpu_seconds", "Allocated GPU time; 3600 are a GPU hour.", "run")
    for view in runs:
        run, goodput = _label(view.status.run_id), accounts.get(view.status.run_id)
        if goodput is None:
            continue
        queued.add_metric([run], goodput.queued_us / 1e6)
        for category, value in goodput.rank_us.items():
            seconds.add_metric([run, str(category)], value / 1e6)
        if goodput.gpus:
            gpus.add_metric([run], goodput.allocated_rank_us / 1e6)
    yield from (seconds, queued, gpus)


def _itself(now: Exported) -> Iterator[Metric]:
    fleet = now.fleet
    states = Counter(view.status.state for view in fleet.runs)
    runs = _gauge("runs", "Runs that are shown, by state.", "state")
    for state in RunState:
        runs.add_metric([str(state)], states[state])
    text = "Runs that are not shown: over --max-runs, or ended longer ago than --keep-ended."
    left_out = _gauge("runs_left_out", text, "reason")
    left_out.add_metric(["limit"], fleet.over_limit)
    left_out.add_metric(["ended"], fleet.long_ended)
    scheduler = _gauge("scheduler_up", "Whether Slurm answered; absent while no run needs it.")
    if fleet.scheduler_answers is not None:
        scheduler.add_metric([], float(fleet.scheduler_answers))
    yield from (runs, left_out, scheduler)
    for name, text, value in (
        ("last_look_timestamp_seconds", "When runs and scheduler were last polled.", fleet.at),
        ("look_duration_seconds", "How long that took.", fleet.took_s),
        ("unreadable_runs", "Runs whose monitor's state cannot be read.", len(fleet.problems)),
    ):
        yield GaugeMetricFamily(f"{PREFIX}_exporter_{name}", text, value)
    for name, text, value in (
        ("looks", "Polls of all runs.", now.polls),
        ("failed_looks", "Polls that failed.", now.failed_polls),
    ):
        yield CounterMetricFamily(f"{PREFIX}_exporter_{name}", text, value)
