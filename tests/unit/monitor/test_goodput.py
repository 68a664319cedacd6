"""Effective training time: the categories sum up to the allocation, and each says the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.attempts import attempts_of
from submitrain.events import Kind, Phase
from submitrain.monitor.accounting.goodput import (
    Goodput,
    account,
    category_rows,
    headline,
    read_goodput,
)
from submitrain.monitor.accounting.records import (
    RunRecords,
    SacctJob,
    rank_events,
    read_allocations,
)
from submitrain.monitor.accounting.timeline import Category, allocations
from submitrain.slurm.client import Answer

Event = dict[str, Any]
MICRO = 1_000_000


def began(attempt: int, t: float, **fields: Any) -> Event:
    """The supervisor's line at the start of an attempt."""
    values = {"job_id": "7", "world_size": 2, "nodes": ["a"], "restart_count": 0, **fields}
    return {"kind": "attempt_start", "attempt": attempt, "t": t, **values}


def over(attempt: int, t: float, cause: str) -> Event:
    """The supervisor's line at the end of an attempt."""
    return {"kind": "attempt_end", "attempt": attempt, "t": t, "cause": cause}


def phase(attempt: int, t: float, name: str, step: int = 0) -> Event:
    """Rank 0 enters a phase."""
    return {"kind": "phase", "attempt": attempt, "t": t, "phase": name, "step": step}


def step(attempt: int, t: float, number: int, **fields: float) -> Event:
    """Rank 0 finished a step."""
    return {"kind": "step", "attempt": attempt, "t": t, "step": number, **fields}


def event(kind: str, attempt: int, t: float, **fields: Any) -> Event:
    """Another event of rank 0."""
    return {"kind": kind, "attempt": attempt, "t": t, **fields}


def seconds(goodput: Goodput) -> dict[str, float]:
    """Wall seconds of the categories that took any."""
    return {str(name): value / MICRO for name, value in goodput.wall_us.items() if value}


KILLED = (
    phase(1, 12.0, "build"),
    phase(1, 15.0, "first_step"),
    step(1, 17.0, 1, step_s=2.0, data_wait_s=0.5),
    phase(1, 17.0, "step", 1),
    step(1, 18.0, 2, step_s=1.0, data_wait_s=0.0),
    phase(1, 18.0, "save", 2),
    event("checkpoint", 1, 18.4, step=2),
    phase(1, 18.5, "step", 2),
    step(1, 19.5, 3, step_s=1.0),
    step(1, 20.5, 4, step_s=1.0),
)
AGAIN = (
    phase(2, 26.0, "load"),
    event("resume", 2, 27.0, step=2),
    phase(2, 27.5, "first_step", 2),
    step(2, 28.5, 3, step_s=1.0),
    phase(2, 28.5, "step", 3),
    step(2, 29.5, 4, step_s=1.0),
    phase(2, 29.5, "validate", 4),
    phase(2, 30.0, "export", 4),
    phase(2, 30.5, "exit", 4),
    event("finish", 2, 30.6, step=4),
)


def killed_and_restarted(cause: str = "rank_died") -> RunRecords:
    """Four steps, a checkpoint after two, a death during the fifth; then all the rest again."""
    lines = (began(1, 10.0), over(1, 24.0, cause), began(2, 25.0), over(2, 31.0, "finished"))
    return RunRecords(attempts=attempts_of(lines), events=(*KILLED, *AGAIN), now=99.0)


def test_a_killed_attempt_is_split_into_kept_dropped_and_lost_time() -> None:
    found = account(killed_and_restarted())
    assert seconds(found) == {
        "startup": 6.0,  # 10 to 15 and 25 to 26
        "data_wait": 0.5,
        "productive": 4.5,  # steps 1 and 2 without the wait, steps 3 and 4 of the second attempt
        "save": 0.5,
        "recomputed": 2.0,  # steps 3 and 4 of the first attempt
        "lost": 3.5,  # 20.5 to 24
        "restore": 1.5,
        "validation": 0.5,
        "export": 0.5,
        "waiting": 1.5,  # 24 to 25 and 30.5 to 31
    }
    assert found.allocated_us == 21 * MICRO
    assert found.allocated_rank_us == 42 * MICRO
    assert found.effective == pytest.approx(4.5 / 21)


def test_a_hung_attempt_is_stalled_from_its_last_progress_to_the_kill() -> None:
    found = seconds(account(killed_and_restarted("hung")))
    assert found["stalled"] == 3.5
    assert "lost" not in found


def test_steps_that_no_log_line_holds_are_dropped_by_their_share() -> None:
    lines = (began(1, 0.0), over(1, 100.0, "rank_died"), began(2, 100.0), over(2, 130.0, "stopped"))
    events = (
        phase(1, 0.0, "first_step", 0),
        step(1, 100.0, 100, step_s=1.0),
        phase(2, 110.0, "first_step", 80),
        step(2, 130.0, 100, step_s=1.0),
        event("stopped", 2, 130.0),
        event("checkpoint", 2, 130.0, step=100),
    )
    found = seconds(account(RunRecords(attempts=attempts_of(lines), events=events)))
    assert found == {"productive": 100.0, "recomputed": 20.0, "startup": 10.0}


def test_unsaved_steps_of_a_run_that_ended_badly_are_thrown_away() -> None:
    lines = (began(1, 10.0), over(1, 24.0, "program_error"))
    found = seconds(account(RunRecords(attempts=attempts_of(lines), events=KILLED)))
    assert (found["recomputed"], found["lost"]) == (2.0, 3.5)


def test_a_living_attempt_counts_until_its_last_sign_and_keeps_its_steps() -> None:
    heartbeat = event("heartbeat", 1, 23.0, step=4)
    records = RunRecords(
        attempts=attempts_of([began(1, 10.0)]), events=(*KILLED, heartbeat), now=30.0, ended=False
    )
    found = seconds(account(records))
    assert "recomputed" not in found
    assert found["unexplained"] == 7.0
    assert found["productive"] == 2.5 + 2.0 + 2.5


def test_spare_nodes_cost_rank_time_and_no_wall_time() -> None:
    lines = (began(1, 0.0, allocated_nodes=3), over(1, 10.0, "finished"))
    events = (phase(1, 0.0, "first_step"), step(1, 10.0, 1, step_s=10.0), event("finish", 1, 10.0))
    found = account(RunRecords(attempts=attempts_of(lines), events=events))
    assert found.wall_us[Category.SPARE] == 0
    assert found.rank_us[Category.SPARE] == 10 * MICRO * 4
    assert found.rank_us[Category.PRODUCTIVE] == 10 * MICRO * 2
    assert found.effective == pytest.approx(1 / 3)


def test_the_queue_is_no_allocation() -> None:
    lines = (
        began(1, 12.0),
        over(1, 20.0, "time_limit"),
        began(2, 62.0, restart_count=1),
        over(2, 70.0, "finished"),
    )
    submitted = {"kind": "submitted", "t": 4.0, "job_id": "7", "cluster": "slurm"}
    jobs = (SacctJob("7", 10 * MICRO, 21 * MICRO), SacctJob("7", 60 * MICRO, 71 * MICRO))
    found = account(RunRecords(attempts_of(lines), submissions=(submitted,), jobs=jobs, now=99.0))
    assert found.queued_us == (6 + 39) * MICRO
    assert found.allocated_us == 22 * MICRO
    assert seconds(found) == {"startup": 4.0, "lost": 16.0, "waiting": 2.0}


def test_an_allocation_without_a_supervisor_is_unexplained() -> None:
    records = RunRecords(jobs=(SacctJob("7", 10 * MICRO, 21 * MICRO),))
    assert seconds(account(records)) == {"unexplained": 11.0}


def test_a_vanished_supervisors_allocation_is_lost_up_to_its_end_not_its_successors_start() -> None:
    lines = (
        began(1, 10.0),
        over(1, 500.0, "lost"),  # written by the successor
        began(2, 501.0, restart_count=1),
        over(2, 510.0, "finished"),
    )
    jobs = (SacctJob("7", 10 * MICRO, 40 * MICRO), SacctJob("7", 500 * MICRO, 510 * MICRO))
    found = account(RunRecords(attempts=attempts_of(lines), events=KILLED, jobs=jobs))
    assert found.allocated_us == 40 * MICRO
    assert seconds(found)["lost"] == 19.5 + 9.0
    without = account(RunRecords(attempts=attempts_of(lines), events=KILLED))
    assert without.allocated_us == round(10.5 * MICRO) + 9 * MICRO


TIMES = st.floats(min_value=0, max_value=5000, allow_nan=False)
ATTEMPTS = st.integers(min_value=1, max_value=5)
CAUSES = ["hung", "lost", "rank_died", "finished"]
SUPERVISED = st.lists(
    st.one_of(
        st.builds(
            began,
            ATTEMPTS,
            TIMES,
            world_size=st.integers(1, 8),
            allocated_nodes=st.integers(0, 4),
            job_id=st.sampled_from(["7", "8"]),
            restart_count=st.integers(0, 2),
            job_started_at=TIMES,
        ),
        st.builds(
            over, ATTEMPTS, TIMES, st.sampled_from(["hung", "lost", "rank_died", "finished"])
        ),
    ),
    max_size=12,
)
NUMBERS = st.integers(min_value=0, max_value=30)
RANKS = st.lists(
    st.one_of(
        st.builds(phase, ATTEMPTS, TIMES, st.sampled_from([*map(str, Phase), "new"]), NUMBERS),
        st.builds(step, ATTEMPTS, TIMES, NUMBERS, step_s=TIMES, data_wait_s=TIMES),
        st.builds(
            event,
            st.sampled_from(sorted(map(str, set(Kind) - {Kind.STEP, Kind.PHASE}))),
            ATTEMPTS,
            st.one_of(TIMES, st.just("nan"), st.none()),
            step=st.one_of(NUMBERS, st.none()),
        ),
    ),
    max_size=40,
)
SPANS = st.lists(
    st.builds(
        lambda job, start, length: SacctJob(job, start, None if length is None else start + length),
        st.sampled_from(["7", "8", "9"]),
        st.integers(0, 5000 * MICRO),
        st.one_of(st.none(), st.integers(0, 2000 * MICRO)),
    ),
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(SUPERVISED, RANKS, SPANS, st.booleans())
def test_whatever_was_recorded_the_categories_sum_up_to_the_allocations(
    attempts: list[Event], events: list[Event], jobs: list[SacctJob], ended: bool
) -> None:
    records = RunRecords(attempts_of(attempts), tuple(events), (), tuple(jobs), 6000.0, ended)
    found = account(records)
    held = allocations(records)
    assert sum(found.wall_us.values()) == sum(span.ended_us - span.started_us for span in held)
    assert all(value >= 0 for value in [*found.wall_us.values(), *found.rank_us.values()])
    assert found.allocated_rank_us >= found.allocated_us
    assert found.queued_us >= 0
    one_job = sorted(
        (s.job_id, s.started_us, s.ended_us) for s in held if s.ended_us > s.started_us
    )
    for (job, _, end), (other, start, _) in pairwise(one_job):
        assert job != other or end <= start, "one job held its nodes twice at one time"


@settings(max_examples=60, deadline=None)
@given(SUPERVISED, RANKS, st.integers(0, 4000), st.binary(max_size=40))
def test_a_torn_or_damaged_event_file_still_adds_up(
    tmp_path_factory: pytest.TempPathFactory,
    attempts: list[Event],
    events: list[Event],
    cut: int,
    rubbish: bytes,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "events").mkdir()
    text = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in events)
    (folder / "events" / "rank00000.jsonl").write_bytes(text[:cut] + rubbish + text[cut + 7 :])
    (folder / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts))
    found = read_goodput(folder, ended=True).as_json()
    assert sum(found["seconds"].values()) == pytest.approx(found["allocated_s"])
    assert sum(found["rank_seconds"].values()) == pytest.approx(found["allocated_rank_s"])


def test_of_many_heartbeats_each_attempts_last_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rank00000.jsonl"
    lines = [event("start", 1, 0.0), *(event("heartbeat", 1, t) for t in (1.0, 2.0))]
    lines += [event("start", 2, 5.0), event("samples", 2, 6.0), event("heartbeat", 2, 7.0)]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_text(text)
    assert [(one["kind"], one["t"]) for one in rank_events(path)] == [
        ("start", 0.0),
        ("heartbeat", 2.0),
        ("start", 5.0),
        ("heartbeat", 7.0),
    ]


def test_sacct_shows_every_stretch_of_a_requeued_job() -> None:
    asked: list[str] = []

    def answer(command: Sequence[str], *, timeout_s: float = 1.0) -> Answer:
        asked.extend(command)
        return Answer(0, "7\x1f100\x1f160\n7\x1f200\x1fUnknown\n8\x1fUnknown\x1fUnknown\n", "")

    jobs, problem = read_allocations(["7", "8"], run=answer)
    assert problem == ""
    assert jobs == [
        SacctJob("7", 100 * MICRO, 160 * MICRO),
        SacctJob("7", 200 * MICRO, None),
    ]
    assert "--duplicates" in asked


def test_without_accounting_the_supervisors_records_do() -> None:
    def refused(command: Sequence[str], *, timeout_s: float = 1.0) -> Answer:
        return Answer(1, "", "Slurm accounting storage is disabled")

    assert read_allocations(["7"], run=refused)[0] == []


def test_the_text_has_the_share_and_the_largest_category_first() -> None:
    found = account(killed_and_restarted())
    assert headline(found) == "effective 21.4 % of 21 s allocated"
    assert category_rows(found)[0] == ("startup", " 28.6 %  6 s, 0.00 rank hours")
