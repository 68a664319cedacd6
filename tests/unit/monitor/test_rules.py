"""Every rule by table: where it fires, where it does not, and where it cannot tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from submitrain.attempts import Action, Attempt, Cause
from submitrain.monitor.alerts.rules import (
    MUTED_BY,
    RULES,
    Finding,
    Limits,
    Rule,
    Severity,
    Unknown,
    full_in_s,
    judge,
)
from submitrain.monitor.watch.observe import (
    CheckpointFacts,
    DiskFacts,
    RankPoint,
    Samples,
    Snapshot,
    StepPoint,
)
from submitrain.status import JobState, RunState

NOW = 1_000_000.0
LIMITS = Limits()
NAN = float("nan")


def snapshot(**fields: Any) -> Snapshot:
    """A healthy run in its 50th step, with some fields changed."""
    healthy: dict[str, Any] = {
        "run_id": "toy",
        "now": NOW,
        "state": RunState.RUNNING,
        "why": "step",
        "job": JobState.RUNNING,
        "attempt": 1,
        "step": 50,
        "total_steps": 100,
        "steps": steps([2.0 + 0.01 * (n % 5) for n in range(50)]),
        "ranks": (rank(0), rank(1)),
        "attempts": (Attempt(1, started_at=NOW - 600, nodes=("n1", "n2")),),
        "checkpoints": CheckpointFacts(10, committed_step=40, committed_bytes=1 << 30),
        "disk": DiskFacts("/runs", free_bytes=100 << 30),
        "samples": Samples(
            rates=rates([100.0] * 60),
            lags=tuple((1, {0: 1.0, 1: 1.1}) for _ in range(5)),
            seen_step=48,
        ),
    }
    return Snapshot(**{**healthy, **fields})


def steps(losses: list[float], **fields: Any) -> tuple[StepPoint, ...]:
    return tuple(
        StepPoint(n, NOW - 600 + 10 * n, 1, loss=loss, step_s=fields.get("step_s", 1.0))
        for n, loss in enumerate(losses, start=1)
    )


def rank(number: int, *, idle_s: float = 1.0, silent_s: float = 0.0, **fields: Any) -> RankPoint:
    values = {"phase": "step", "step": 50, **fields}
    return RankPoint(
        rank=number,
        host=f"n{number + 1}",
        progress_at=NOW - idle_s,
        last_event_at=NOW - silent_s,
        **values,
    )


def rates(values: list[float], every_s: float = 20.0) -> tuple[tuple[float, float, int], ...]:
    return tuple(
        (NOW - every_s * (len(values) - n), value, 1) for n, value in enumerate(values, start=1)
    )


def ended(number: int, cause: str, action: str, last_step: int | None = None) -> Attempt:
    t = NOW - 1000 + 10 * number
    why = f"because {cause}"
    return Attempt(number, "7", Cause(cause), Action(action), None, last_step, t, t + 5, why)


def silent_ranks(idle_s: float, **fields: Any) -> tuple[RankPoint, ...]:
    return (rank(0, idle_s=idle_s, **fields), rank(1, idle_s=idle_s + 1, **fields))


SLOW = Samples(rates=rates([100.0] * 60 + [70.0] * 20))
LAGGING = Samples(lags=tuple((1, {0: 1.0, 1: 1.5}) for _ in range(5)))
CRASHES = tuple(ended(n, "rank_died", "restart") for n in (1, 2, 3))
PREEMPTIONS = tuple(ended(n, "preempted", "requeue", n) for n in range(1, 7))
QUEUED = {"state": RunState.QUEUED, "job": JobState.PENDING, "why": "Priority", "ranks": ()}
FILLING = tuple((NOW - 3600 + 60 * n, (100 - n) * float(1 << 30)) for n in range(61))

FIRES: list[tuple[Rule, str, Severity, dict[str, Any], str]] = [
    (Rule.HANG, "run", Severity.CRITICAL, {"ranks": silent_ranks(61)}, "no progress for 1 min 1 s"),
    (
        Rule.HANG,
        "run",
        Severity.CRITICAL,
        {"ranks": (rank(0, idle_s=70), rank(1, idle_s=80, silent_s=75, step=49))},
        "silent: rank 1 (n2)",
    ),
    (
        Rule.HANG,
        "run",
        Severity.CRITICAL,
        {"ranks": silent_ranks(1801, phase="save")},
        "in phase save",
    ),
    (
        Rule.HANG,
        "run",
        Severity.CRITICAL,
        {"ranks": (), "attempts": (Attempt(1, started_at=NOW - 1801),), "state": RunState.STARTING},
        "no rank has spoken",
    ),
    (
        Rule.HANG,
        "run",
        Severity.CRITICAL,
        {"ranks": silent_ranks(61), "job": JobState.UNKNOWN, "state": RunState.UNKNOWN},
        "no progress",
    ),
    (Rule.STRAGGLER, "rank 1", Severity.WARNING, {"samples": LAGGING}, "rank 1 (n2) computes 1.5"),
    (Rule.THROUGHPUT, "run", Severity.WARNING, {"samples": SLOW}, "usual are 100 (70%)"),
    (
        Rule.LOSS,
        "not finite",
        Severity.CRITICAL,
        {"steps": steps([2.0] * 49 + [NAN])},
        "not finite at step 50",
    ),
    (
        Rule.LOSS,
        "not finite",
        Severity.CRITICAL,
        {"anomalies": ((50, "weights_not_finite", "rollback"),)},
        "rollback",
    ),
    (
        Rule.LOSS,
        "spike",
        Severity.WARNING,
        {"steps": steps([2.0 + 0.01 * (n % 5) for n in range(47)] + [9.0, 9.1, 9.2])},
        "loss 9.2 at step 50, usual is 2.02",
    ),
    (Rule.LOSS, "spike", Severity.WARNING, {"anomalies": ((50, "loss_spike", "warned"),)}, "warn"),
    (
        Rule.CHECKPOINT,
        "overdue",
        Severity.WARNING,
        {"checkpoints": CheckpointFacts(10, committed_step=29)},
        "21 steps, the interval is 10",
    ),
    (
        Rule.CHECKPOINT,
        "failed",
        Severity.CRITICAL,
        {"checkpoints": CheckpointFacts(10, 40, 1, failed=(50, "no space left"))},
        "step 50 could not be saved: no space left",
    ),
    (
        Rule.DISK,
        "space",
        Severity.CRITICAL,
        {"disk": DiskFacts("/runs", free_bytes=(2 << 30) - 1)},
        "a checkpoint takes 1.07 GB",
    ),
    (
        Rule.DISK,
        "write",
        Severity.CRITICAL,
        {"disk": DiskFacts("/runs", free_bytes=1 << 40, problem="Disk quota exceeded")},
        "cannot write to /runs: Disk quota exceeded",
    ),
    (Rule.DISK, "trend", Severity.WARNING, {"samples": Samples(free=FILLING)}, "full in 40 min"),
    (
        Rule.CRASH_LOOP,
        "run",
        Severity.CRITICAL,
        {"attempts": CRASHES},
        "3 attempts failed in a row",
    ),
    (
        Rule.FAILED,
        "run",
        Severity.CRITICAL,
        {"state": RunState.FAILED, "job": JobState.ENDED, "why": "rank 1 died"},
        "failed at step 50: rank 1 died",
    ),
    (
        Rule.FAILED,
        "run",
        Severity.CRITICAL,
        {"state": RunState.FAILED, "why": "?", "diagnosis": "no space left", "remedy": "make room"},
        "no space left",
    ),
    (
        Rule.FAILED,
        "cancelled",
        Severity.INFO,
        {"state": RunState.CANCELLED, "why": "cancelled by ada"},
        "cancelled by ada",
    ),
    (Rule.REQUEUED, "run", Severity.WARNING, {"attempts": PREEMPTIONS}, "6 requeues in 24 hours"),
    (
        Rule.QUEUE,
        "run",
        Severity.WARNING,
        {**QUEUED, "queued_since": NOW - 86401},
        "Priority: other jobs go first",
    ),
    (
        Rule.QUEUE,
        "run",
        Severity.WARNING,
        {**QUEUED, "why": "QOSMaxGRESPerUser", "queued_since": NOW - 90000},
        "a limit of its account or QOS is used up",
    ),
    (
        Rule.FINISHED,
        "run",
        Severity.INFO,
        {"state": RunState.FINISHED, "job": JobState.ENDED},
        "finished after 50 steps",
    ),
]

QUIET: list[tuple[Rule, dict[str, Any]]] = [
    (Rule.HANG, {"ranks": silent_ranks(59)}),
    (Rule.HANG, {"ranks": silent_ranks(61), "steps": steps([2.0] * 50, step_s=20.0)}),
    (Rule.HANG, {"ranks": silent_ranks(1000, phase="first_step")}),
    (Rule.HANG, {"ranks": silent_ranks(9999), **QUEUED}),
    (Rule.HANG, {"ranks": silent_ranks(9999), "state": RunState.FAILED}),
    (Rule.STRAGGLER, {"samples": Samples(lags=tuple((1, {0: 1.0, 1: 1.3}) for _ in range(5)))}),
    (
        Rule.STRAGGLER,
        {"samples": replace(LAGGING, lags=(*LAGGING.lags[:4], (1, {0: 1.0, 1: 1.1})))},
    ),
    (Rule.STRAGGLER, {"samples": LAGGING, "state": RunState.FINISHED}),
    (Rule.THROUGHPUT, {"samples": Samples(rates=rates([100.0] * 60 + [85.0] * 20))}),
    (Rule.THROUGHPUT, {"samples": Samples(rates=rates([100.0] * 60 + [50.0] * 10))}),
    (Rule.LOSS, {"steps": steps([2.0] * 48 + [9.0, 9.0])}),
    (Rule.LOSS, {"steps": steps([9.0 - 0.1 * n for n in range(50)])}),
    (Rule.LOSS, {"steps": steps([2.0] * 10 + [NAN] + [2.0] * 39)}),
    (Rule.CHECKPOINT, {"checkpoints": CheckpointFacts(10, committed_step=30)}),
    (Rule.CHECKPOINT, {"checkpoints": CheckpointFacts(None, committed_step=0)}),
    (Rule.DISK, {"disk": DiskFacts("/runs", free_bytes=2 << 30)}),
    (
        Rule.DISK,
        {"samples": Samples(free=tuple((t, 1e15 - n) for n, (t, _) in enumerate(FILLING)))},
    ),
    (Rule.CRASH_LOOP, {"attempts": (*CRASHES[:2], ended(3, "rank_died", "restart", 7))}),
    (Rule.CRASH_LOOP, {"attempts": tuple(ended(n, "preempted", "requeue") for n in (1, 2, 3))}),
    (Rule.FAILED, {"state": RunState.FINISHED}),
    (Rule.REQUEUED, {"attempts": PREEMPTIONS[:5]}),
    (
        Rule.REQUEUED,
        {"attempts": tuple(ended(n, "time_limit", "requeue", n) for n in range(1, 20))},
    ),
    (Rule.QUEUE, {**QUEUED, "queued_since": NOW - 86399}),
    (Rule.FINISHED, {}),
]

UNKNOWN: list[tuple[Rule, dict[str, Any]]] = [
    (
        Rule.HANG,
        {"ranks": tuple(rank(n, idle_s=99, silent_s=99) for n in (0, 1)), "job": JobState.UNKNOWN},
    ),
    (Rule.HANG, {"ranks": (), "attempts": ()}),
    (Rule.STRAGGLER, {"samples": Samples()}),
    (Rule.STRAGGLER, {"samples": replace(LAGGING, lags=LAGGING.lags[:4])}),
    (Rule.STRAGGLER, {"samples": LAGGING, "attempt": 2}),
    (Rule.THROUGHPUT, {"samples": Samples(rates=rates([100.0] * 10))}),
    (Rule.THROUGHPUT, {"samples": SLOW, "attempt": 2}),
    (Rule.LOSS, {"steps": steps([2.0] * 5)}),
    (Rule.DISK, {"disk": None}),
    (Rule.DISK, {"disk": DiskFacts("/runs", answered=False, problem="no answer")}),
    (Rule.DISK, {"disk": DiskFacts("/runs")}),
    (Rule.FAILED, {"state": RunState.UNKNOWN, "job": JobState.UNKNOWN}),
    (Rule.QUEUE, {"state": RunState.UNKNOWN, "job": JobState.UNKNOWN}),
    (Rule.QUEUE, QUEUED),
]


@pytest.mark.parametrize(("rule", "subject", "severity", "fields", "evidence"), FIRES)
def test_a_rule_fires_with_its_evidence(
    rule: Rule, subject: str, severity: Severity, fields: dict[str, Any], evidence: str
) -> None:
    (found,) = _findings(rule, fields)
    assert (found.rule, found.subject, found.severity) == (rule, subject, severity)
    assert evidence in found.text


@pytest.mark.parametrize(("rule", "fields"), QUIET)
def test_a_rule_is_quiet(rule: Rule, fields: dict[str, Any]) -> None:
    assert _findings(rule, fields) == []


@pytest.mark.parametrize(("rule", "fields"), UNKNOWN)
def test_a_rule_cannot_tell(rule: Rule, fields: dict[str, Any]) -> None:
    answer = RULES[rule](snapshot(**fields), LIMITS)
    assert isinstance(answer, Unknown)
    assert answer.why


def test_every_rule_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    assert {case[0] for case in FIRES} == set(RULES) == set(Rule)
    assert {case[0] for case in QUIET} | {case[0] for case in UNKNOWN} == set(Rule)


def test_a_healthy_run_has_no_findings_and_every_rule_can_tell() -> None:
    verdicts = judge(snapshot(), LIMITS)
    assert (verdicts.findings, verdicts.unknown) == ((), {})


def test_every_warning_and_every_critical_finding_says_what_to_do() -> None:
    for rule, _, _, fields, _ in FIRES:
        for found in _findings(rule, fields):
            assert found.severity is Severity.INFO or found.next_step


def test_thresholds_come_from_the_configuration() -> None:
    fields = {"ranks": silent_ranks(61)}
    assert RULES[Rule.HANG](snapshot(**fields), Limits(hang_step_s=100)) == []


def test_no_rule_mutes_itself_in_a_circle() -> None:
    for rule, causes in MUTED_BY.items():
        assert all(rule not in MUTED_BY.get(cause, ()) for cause in causes)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_few_points_make_no_trend(count: int) -> None:
    assert full_in_s(FILLING[:count]) is None


def _findings(rule: Rule, fields: dict[str, Any]) -> list[Finding]:
    answer = RULES[rule](snapshot(**fields), LIMITS)
    assert not isinstance(answer, Unknown), answer
    return answer
