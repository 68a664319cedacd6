"""Two supervisors or two clients of one run: one acts, the other one leaves it alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from submitrain.attempts import Attempt
from submitrain.errors import FencedError, UserError
from submitrain.events import EXIT_FENCED, Kind, append_line, read_events
from submitrain.launcher.submit.claims import (
    DEAD_AFTER_S,
    ClaimState,
    claim_submission,
    read_claim,
    read_claims,
    superseded,
)
from submitrain.launcher.supervisor.ownership import Ownership
from submitrain.processes import ProcessRef
from submitrain.run_folder import RunDir, write_json_atomically
from tests.local.test_fencing_saves import tree
from tests.supervised import CountingRun, counting_run

LONG = {"steps": 10_000, "step_s": 0.05, "save_every": 5, "save_s": 0.05}


def visible(run_dir: RunDir) -> dict[str, str]:
    """Everything in the run folder that is not attempt 1's own."""
    own = ("/attempts/001/", "/logs/attempt-001/", "/supervisor.log")
    return {
        name: what for name, what in tree(run_dir.root).items() if not any(o in name for o in own)
    }


def finish_soon(run: CountingRun) -> None:
    steps = max(event["step"] for event in run.events(Kind.STEP)) + 20
    write_json_atomically(run.run_dir.root / "counting.json", {**LONG, "steps": steps})


@pytest.mark.ranks
@pytest.mark.parametrize("frozen", ["everything", "supervisor-and-rank-0"])
def test_a_thawed_supervisor_and_its_ranks_leave_without_a_trace(
    tmp_path: Path, frozen: str
) -> None:
    with counting_run(tmp_path / "run", plan=LONG) as old:
        old.wait_for_step(7)
        assert old.process is not None
        pids = [old.process.pid, old.rank_pid(0), old.rank_pid(1)]
        for pid in pids if frozen == "everything" else pids[:2]:
            os.kill(pid, signal.SIGSTOP)
        finish_soon(old)
        successor = CountingRun(old.run_dir, environment=old.environment).start()
        assert successor.wait() == 0, successor.log
        refs = [ProcessRef.of(pid) for pid in pids]
        before = visible(old.run_dir)
        for pid in pids:
            if ProcessRef.of(pid) is not None:
                os.kill(pid, signal.SIGCONT)
        began = time.monotonic()
        assert old.wait(20) == EXIT_FENCED
        assert time.monotonic() - began < 10
        assert not any(ref is not None and ref.alive() for ref in refs)
        assert visible(old.run_dir) == before
    assert [(end["attempt"], end["cause"]) for end in old.ends()] == [(1, "lost"), (2, "finished")]


@pytest.mark.ranks
def test_a_finished_run_is_not_started_again_by_a_late_supervisor(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan={"steps": 4, "step_s": 0.01}) as run:
        assert run.wait() == 0
        before = visible(run.run_dir)
        assert run.start().wait() == 0
        assert visible(run.run_dir) == before


def test_the_next_attempt_is_claimed_only_behind_the_own_one(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    first, second = (Ownership(run_dir, "7", 0, environ={}) for _ in range(2))
    assert (first.begin(), second.begin()) == (None, None)
    assert first.claim() == 1
    with pytest.raises(FencedError, match="attempt 1 belongs to another supervisor"):
        second.claim()
    assert run_dir.claim_attempt() == 2
    assert first.lost()
    with pytest.raises(FencedError, match="attempt 2 of another supervisor"):
        first.check()
    with pytest.raises(FencedError):
        first.claim()
    assert run_dir.newest_attempt() == 2


def claim_state(number: int, job_id: str | None) -> ClaimState:
    return ClaimState(number, ended=True, job_id=job_id, holder={}, silent_s=0)


@pytest.mark.parametrize(
    ("claims", "mine", "restart_counts", "restarts", "expected"),
    [
        ([], None, [], 0, None),
        ([(1, "10")], 1, [0], 0, None),
        ([(1, "10"), (2, None)], 1, [0], 0, None),
        ([(1, "10"), (2, "11")], 1, [0], 0, "job 11 was submitted for this run later"),
        ([(1, "10"), (2, "11")], 2, [], 0, None),
        ([(1, "10")], 1, [0, 1], 1, None),
        ([(1, "10")], 1, [0, 1], 0, "the job runs elsewhere: it was restarted 1 times, here 0"),
    ],
)
def test_which_supervisor_is_superseded(
    claims: list[Any], mine: int | None, restart_counts: list[int], restarts: int, expected: str
) -> None:
    attempts = [Attempt(n, restarts=count) for n, count in enumerate(restart_counts, start=1)]
    assert superseded([claim_state(*one) for one in claims], mine, attempts, restarts) == expected


HOLD = """
import sys, time
from pathlib import Path
from submitrain.launcher.submit.claims import claim_submission
from submitrain.run_folder import RunDir
with claim_submission(RunDir(Path(sys.argv[1])), "resume") as claim:
    print("held", flush=True)
    sys.stdin.readline()
    claim.job_id = "77"
"""


def hold(run_dir: RunDir) -> subprocess.Popen[str]:
    """Another client that holds the claim until it is told to end."""
    client = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline() == "held\n"
    return client


def test_a_second_client_is_refused_while_the_first_one_lives(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    client = hold(run_dir)
    with (
        pytest.raises(
            UserError, match=rf"resume: .* right now by resume of \w+, process {client.pid} "
        ),
        claim_submission(run_dir, "resume"),
    ):
        pass
    client.communicate("\n")
    with claim_submission(run_dir, "resume") as claim:
        assert claim.number == 2
    assert [(one.number, one.job_id) for one in read_claims(run_dir)] == [(1, "77"), (2, None)]


def test_the_claim_of_a_killed_client_holds_nobody_up(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    client = hold(run_dir)
    client.kill()
    client.communicate()
    with claim_submission(run_dir, "resume") as claim:
        assert claim.number == 2


def test_a_client_on_another_host_is_given_up_when_it_is_silent(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    with claim_submission(run_dir, "resume") as claim:
        holder = json.loads((claim.folder / "holder.json").read_text())
        holder["process"]["host"] = holder["host"] = "elsewhere"
        write_json_atomically(claim.folder / "holder.json", holder)
        assert read_claim(run_dir, 1).held
        past = time.time() - DEAD_AFTER_S - 5
        os.utime(claim.folder, (past, past))
        assert not read_claim(run_dir, 1).held


def test_of_many_clients_at_once_one_may_submit(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run_dir.root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    losers = [c for c in clients if c.stdout is not None and c.stdout.readline() != "held\n"]
    assert len(losers) == 3
    for client in clients:
        _, words = client.communicate("\n")
        assert ("is being submitted right now" in words) == (client in losers)


def test_readers_skip_what_a_fenced_writer_appended_too_late(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for attempt, step in ((1, 1), (2, 2), (1, 2), (2, 3)):
        append_line(path, {"kind": "step", "attempt": attempt, "step": step})
    assert [(e["attempt"], e["step"]) for e in read_events(path)] == [(1, 1), (2, 2), (2, 3)]
