"""Faults inside ranks: planned in a file, fired once, recorded, and real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from submitrain.errors import ConfigError
from submitrain.run_folder import RunDir
from submitrain.train import faults
from submitrain.train.context import RankContext
from submitrain.train.faults import (
    FaultKind,
    Moment,
    arm,
    at,
    plan_of,
    read_faults,
    read_fired,
    write_faults,
)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults._armed = None


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """An empty run folder."""
    (tmp_path / "events").mkdir()
    return RunDir(tmp_path)


def context(run_dir: RunDir, *, rank: int = 0, attempt: int = 1) -> RankContext:
    """A rank of two."""
    return RankContext(
        run_dir=run_dir,
        attempt=attempt,
        job_id="1",
        rank=rank,
        world_size=2,
        local_rank=rank,
        local_world_size=2,
    )


def test_without_a_plan_nothing_is_armed_and_nothing_is_written(run_dir: RunDir) -> None:
    arm(context(run_dir))
    assert faults._armed is None
    assert at(Moment.STEP, step=3) is False
    assert not run_dir.fired.exists()


def test_a_fault_fires_once_in_a_run_and_is_recorded_with_time_and_place(run_dir: RunDir) -> None:
    write_faults(run_dir, plan_of({"moment": "step", "kind": "nan", "rank": 1, "step": 3}))
    began = time.time()
    arm(context(run_dir, rank=1))
    assert [at(Moment.STEP, step=step) for step in (1, 2, 3, 4)] == [False, False, True, False]
    arm(context(run_dir, rank=1, attempt=2))
    assert not any(at(Moment.STEP, step=step) for step in range(1, 9))
    (fired,) = read_fired(run_dir)
    assert (fired.id, fired.rank, fired.step, fired.attempt) == ("fault-1", 1, 3, 1)
    assert (fired.moment, fired.kind, fired.pid) == ("step", "nan", os.getpid())
    assert began <= fired.t <= time.time()


ASKED: dict[str, tuple[dict[str, Any], list[tuple[int, int, int]]]] = {
    # fields of the fault -> (attempt, step, micro-batch) at which it fires, of 2 x 3 x 2
    "at once": ({}, [(1, 1, 0)]),
    "at a step": ({"step": 2}, [(1, 2, 0)]),
    "in a micro-batch": ({"step": 2, "micro_batch": 1}, [(1, 2, 1)]),
    "in an attempt": ({"attempt": 2}, [(2, 1, 0)]),
    "twice": ({"step": 3, "times": 2}, [(1, 3, 0), (1, 3, 1)]),
    "once in each attempt": ({"step": 3, "times": 2, "micro_batch": 1}, [(1, 3, 1), (2, 3, 1)]),
    "beyond the end": ({"step": 4}, []),
    "on any rank": ({"rank": None}, [(1, 1, 0)]),
    "on another rank": ({"rank": 1}, []),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_fault_fires_where_it_is_asked_for(run_dir: RunDir, name: str) -> None:
    fields, expected = ASKED[name]
    write_faults(run_dir, plan_of({"moment": "step", "kind": "nan", **fields}))
    fired = []
    for attempt in (1, 2):
        arm(context(run_dir, attempt=attempt))
        for step in (1, 2, 3):
            for micro_batch in (0, 1):
                if at(Moment.STEP, step=step, micro_batch=micro_batch):
                    fired.append((attempt, step, micro_batch))
                assert not at(Moment.ACCUMULATION, step=step, micro_batch=micro_batch)
    assert fired == expected


def test_the_step_is_the_one_that_the_rank_is_at(run_dir: RunDir) -> None:
    write_faults(run_dir, plan_of({"moment": "step", "kind": "nan", "step": 7}))
    rank = context(run_dir)
    arm(rank)
    rank.step = 5  # finished steps: the sixth is being computed
    assert not at(Moment.STEP)
    rank.step = 6
    assert at(Moment.STEP)
    assert [fired.step for fired in read_fired(run_dir)] == [7]


WRONG: dict[str, tuple[Any, str]] = {
    "unknown moment": ([{"id": "a", "moment": "lunch", "kind": "kill"}], "moment"),
    "unknown kind": ([{"id": "a", "moment": "step", "kind": "maim"}], "kind"),
    "unknown key": ([{"id": "a", "moment": "step", "kind": "kill", "when": 3}], "when"),
    "path as id": ([{"id": "../a", "moment": "step", "kind": "kill"}], "id"),
    "nan elsewhere": ([{"id": "a", "moment": "save", "kind": "nan"}], "expected step"),
    "nobody is there": (
        [{"id": "a", "moment": "publish", "kind": "kill", "rank": 1}],
        "only rank 0",
    ),
    "no step there": ([{"id": "a", "moment": "build", "kind": "kill", "step": 3}], "none is known"),
    "same id": ([{"id": "a", "moment": "step", "kind": "kill"}] * 2, "unique"),
    "no list": (3, "list of faults"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plan_is_refused_by_name(run_dir: RunDir, name: str) -> None:
    plan, words = WRONG[name]
    run_dir.faults.write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=words):
        read_faults(run_dir)


ENDS = {
    FaultKind.KILL: -signal.SIGKILL,
    FaultKind.TERM: -signal.SIGTERM,
    FaultKind.SEGV: -signal.SIGSEGV,
    FaultKind.ABORT: -signal.SIGABRT,
    FaultKind.EXIT0: 0,
    FaultKind.EXCEPTION: 1,
    FaultKind.MEMORY: 1,
    FaultKind.DEVICE_MEMORY: 1,
}
STRIKE = """
import sys
from pathlib import Path
from tests.unit.train.test_faults import context
from submitrain.train.faults import Moment, arm, at
from submitrain.run_folder import RunDir
arm(context(RunDir(Path(sys.argv[1]))))
at(Moment.SAVE, step=1)
print("survived", flush=True)
"""


def struck(run_dir: RunDir, **fault: Any) -> subprocess.Popen[str]:
    """A process that a fault strikes."""
    write_faults(run_dir, plan_of({"moment": "save", **fault}))
    return subprocess.Popen(
        [sys.executable, "-c", STRIKE, str(run_dir.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ENDS)
def test_a_deadly_fault_ends_the_process_as_it_says(run_dir: RunDir, kind: FaultKind) -> None:
    process = struck(run_dir, kind=str(kind), message="out of luck")
    out, err = process.communicate(timeout=20)
    assert process.returncode == ENDS[kind], err
    assert "survived" not in out
    if kind in (FaultKind.EXCEPTION, FaultKind.MEMORY, FaultKind.DEVICE_MEMORY):
        assert err.endswith("Error: out of luck\n")
    assert [fired.kind for fired in read_fired(run_dir)] == [kind]


def state_of(pid: int) -> str:
    """The letter of proc(5): T is stopped, S sleeps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize(
    ("kind", "state", "dies_of_term"), [("stop", "T", False), ("hang", "S", True)]
)
def test_a_standing_fault_leaves_a_living_process(
    run_dir: RunDir, kind: str, state: str, dies_of_term: bool
) -> None:
    process = struck(run_dir, kind=kind)
    try:
        wait_until(lambda: bool(read_fired(run_dir)) and state_of(process.pid) == state)
        process.terminate()
        if dies_of_term:
            assert process.wait(20) == -signal.SIGTERM
        else:
            assert state_of(process.pid) == state
    finally:
        process.kill()
        process.communicate()


HOLD = """
import sys, threading, time
from pathlib import Path
from tests.unit.train.test_faults import context
from submitrain.train.faults import Moment, arm, at
from submitrain.run_folder import RunDir
root = Path(sys.argv[1])
arm(context(RunDir(root)))
threading.Thread(target=at, args=(Moment.SAVE,), kwargs={"step": 1}, daemon=True).start()
while True:
    (root / "beat").write_text(str(time.time()))
    time.sleep(0.01)
"""


def test_holding_the_interpreter_lock_stops_every_other_thread(run_dir: RunDir) -> None:
    write_faults(run_dir, plan_of({"moment": "save", "kind": "hang_gil"}))
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir.root)])
    beat = run_dir.root / "beat"
    try:
        wait_until(lambda: bool(read_fired(run_dir)))
        time.sleep(0.3)
        before = beat.read_text() if beat.exists() else ""
        time.sleep(0.3)
        assert (beat.read_text() if beat.exists() else "") == before
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Any) -> None:
    """Poll for a while."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_slow_goes_on_afterwards(run_dir: RunDir) -> None:
    process = struck(run_dir, kind="slow", seconds=0.01)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "survived\n")


def test_corruption_waits_for_a_checkpoint_and_flips_one_bit_of_the_newest(
    run_dir: RunDir,
) -> None:
    process = struck(run_dir, kind="corrupt")
    assert process.communicate(timeout=20)[0] == "survived\n", "there was nothing to damage yet"
    assert read_fired(run_dir) == []
    older, newer = (run_dir.checkpoints / f"step-0000000{step}" for step in (5, 9))
    for folder in (older, newer):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_bytes(bytes(1000))
        (folder / "manifest.json").write_bytes(bytes(2000))
    process = struck(run_dir, kind="corrupt")
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert (older / "model" / "weights").read_bytes() == bytes(1000)
    damaged = (newer / "model" / "weights").read_bytes()
    assert sum(byte.bit_count() for byte in damaged) == 1
    assert len(damaged) == 1000
    assert (newer / "manifest.json").read_bytes() == bytes(2000)


WORKER = """
import multiprocessing, signal, sys, time
from pathlib import Path
from tests.unit.train.test_faults import context
from submitrain.train.faults import Moment, arm, at
from submitrain.run_folder import RunDir
arm(context(RunDir(Path(sys.argv[1]))))
at(Moment.STEP, step=1)
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
worker.start()
at(Moment.STEP, step=2)
worker.join(20)
print(worker.exitcode)
"""


def test_a_loader_process_is_killed_once_there_is_one(run_dir: RunDir) -> None:
    write_faults(run_dir, plan_of({"moment": "step", "kind": "worker_kill"}))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(run_dir.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) == -signal.SIGKILL
    assert [fired.step for fired in read_fired(run_dir)] == [2]


def test_planning_and_firing_import_no_torch() -> None:
    program = "import sys, submitrain.train.faults; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
