"""``python -m monitor watch`` as people run it: a process, real servers, changing run folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import append_line
from submitrain.monitor.watch.disk import read_disk
from submitrain.monitor.watch.observe import RankPoint, lag_of
from submitrain.processes import ProcessRef
from submitrain.run_folder import write_json_atomically
from submitrain.train.context import busy_s
from tests.alert_parts import RUN_ID, FakeRun, lines
from tests.cluster.ports import free_ports
from tests.receivers import HttpReceiver, SmtpReceiver, http_receiver, smtp_receiver
from tests.supervised import REPOSITORY, CountingRun, counting_run

QUICK = {"alerts": {"webhook_url": "${HOOK}", "group_s": 0}}


@pytest.fixture
def web() -> Iterator[HttpReceiver]:
    with http_receiver() as receiver:
        yield receiver


@pytest.fixture
def mail_server() -> Iterator[SmtpReceiver]:
    with smtp_receiver() as receiver:
        yield receiver


def start(*arguments: str, port: int, path: str | None = None) -> subprocess.Popen[str]:
    """A watcher in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "HOOK": f"http://127.0.0.1:{port}/hook",
        **({"PATH": path} if path is not None else {}),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "monitor", "watch", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def watch(*arguments: str, port: int = 9, path: str | None = None) -> tuple[int, str, str]:
    """A watcher until its end: exit code, output, errors."""
    process = start(*arguments, port=port, path=path)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def told(web: HttpReceiver) -> list[tuple[str, str, str]]:
    """(run, rule, event) of everything that arrived, with doubles."""
    with web.lock:
        bodies = [request.json for request in web.requests if request.method == "POST"]
    return [(one["run_id"], one["rule"], one["event"]) for b in bodies for one in b["entries"]]


def failed_run(runs: Path, config: dict[str, Any] = QUICK, name: str = RUN_ID) -> FakeRun:
    """A run that has just failed for want of space."""
    run = FakeRun(runs, name=name, config=config)
    run.begin()
    run.steps(1, 7)
    message = "[Errno 28] No space left on device: '/x'"
    run.event("failure", rank=1, exception="builtins.OSError", message=message, step=7)
    run.end("program_error", "stop", explanation="rank 1 raised OSError", last_step=7)
    run.finish("failed", "rank 1 raised OSError")
    return run


def test_a_failure_is_told_with_its_cause_and_the_watch_ends(
    tmp_path: Path, web: HttpReceiver
) -> None:
    run = failed_run(tmp_path)
    code, out, errors = watch(str(run.dir.root), "--interval", "0.2", port=web.port)
    assert (code, errors) == (1, "")
    assert told(web) == [(RUN_ID, "failed", "firing")]
    (alert,) = run.alerts()
    assert "no space left" in alert["text"].lower()
    assert "critical failed" in out
    assert run.state()["outbox"] == []


def test_what_was_told_is_not_told_again_by_the_next_watcher(
    tmp_path: Path, web: HttpReceiver
) -> None:
    run = failed_run(tmp_path)
    for _ in range(2):
        watch(str(run.dir.root), "--once", port=web.port)
        watch(str(run.dir.root), "--interval", "0.2", port=web.port)
    assert told(web) == [(RUN_ID, "failed", "firing")]
    assert len(run.alerts()) == 1


def test_a_failed_run_that_is_resumed_is_resolved_and_may_fail_again(
    tmp_path: Path, web: HttpReceiver
) -> None:
    run = failed_run(tmp_path)
    watch(str(run.dir.root), "--once", port=web.port)
    run.dir.summary.unlink()
    me = ProcessRef.of(os.getpid())
    assert me is not None
    run.submit(attempt=1, process=me.as_json())
    run.begin()
    run.steps(8, 9)
    watch(str(run.dir.root), "--once", port=web.port)
    run.finish()
    watch(str(run.dir.root), "--interval", "0.2", port=web.port)
    story = [(rule, event) for _, rule, event in told(web)]
    assert story == [("failed", "firing"), ("failed", "resolved"), ("finished", "firing")]


def test_a_run_that_ended_long_ago_is_no_news(tmp_path: Path, web: HttpReceiver) -> None:
    run = failed_run(tmp_path)
    for path in (run.dir.attempts, run.dir.submissions, run.dir.events(0), run.dir.events(1)):
        old = [{**line, "t": line["t"] - 7200} for line in lines(path)]
        path.write_text("".join(json.dumps(line) + "\n" for line in old))
    code, _, _ = watch(str(run.dir.root), "--interval", "0.2", port=web.port)
    assert (code, told(web)) == (1, [])
    assert not run.dir.monitor.exists()


def test_a_channel_that_was_down_loses_nothing(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    run = failed_run(tmp_path)
    watch(str(run.dir.root), "--once", port=port)
    deliveries = run.dir.monitor / "deliveries.jsonl"
    assert [line["outcome"] for line in lines(deliveries)] == ["trying", "failed"]
    with http_receiver(port) as web:
        code, _, _ = watch(str(run.dir.root), "--interval", "0.2", port=port)
        assert code == 1
        assert told(web) == [(RUN_ID, "failed", "firing")]


def test_two_watchers_at_once_tell_everything_once(tmp_path: Path, web: HttpReceiver) -> None:
    names = [f"toy{n}-20260101T000000-0a1b2c3{n}" for n in range(5)]
    both = [
        start("--all", "--runs-dir", str(tmp_path), "--interval", "0.1", port=web.port)
        for _ in range(2)
    ]
    try:
        for name in names:
            failed_run(tmp_path, name=name)
        wait_for(lambda: len(told(web)) >= len(names))
        time.sleep(1.0)  # time for the other one to tell it again, if it would
    finally:
        for process in both:
            process.terminate()
            process.communicate(timeout=30)
    assert Counter(told(web)) == Counter({(name, "failed", "firing"): 1 for name in names})


def test_a_silent_scheduler_ends_neither_run_nor_watch(tmp_path: Path, web: HttpReceiver) -> None:
    run = FakeRun(tmp_path, config=QUICK)
    run.submit(cluster="slurm", job_id="17")
    run.begin()
    run.steps(1, 3)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("squeue", "sacct"):
        (tools / name).write_text(
            "#!/bin/sh\necho 'slurm_load_jobs error: timed out' >&2\nexit 1\n"
        )
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    arguments = (str(run.dir.root), "--interval", "0.1", "--json")
    process = start(*arguments, port=web.port, path=path)
    assert process.stdout is not None
    seen = [json.loads(process.stdout.readline()) for _ in range(5)]
    assert {line["state"] for line in seen} == {"unknown"}
    assert "failed" in seen[0]["unknown"]
    run.end("preempted", "requeue", last_step=3)
    assert json.loads(process.stdout.readline())["state"] == "unknown"
    assert process.poll() is None
    run.finish()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["state"] == "finished"
    assert told(web) == [(RUN_ID, "finished", "firing")]


def test_the_dead_mans_url_is_pinged_after_every_look(tmp_path: Path, web: HttpReceiver) -> None:
    config = tmp_path / "alerts.yaml"
    config.write_text("alerts: {deadman_url: '${HOOK}'}\n")
    runs = tmp_path / "runs"
    arguments = ("--all", "--runs-dir", str(runs), "--config", str(config), "--once")
    for count in (1, 2):
        assert watch(*arguments, port=web.port)[0] == 0
        assert [request.method for request in web.requests] == ["GET"] * count


def test_one_file_may_hold_the_settings_of_all_runs(tmp_path: Path, web: HttpReceiver) -> None:
    config = tmp_path / "alerts.yaml"
    config.write_text(json.dumps(QUICK))
    run = failed_run(tmp_path / "runs", config={})
    state = tmp_path / "state"
    arguments = ("--all", "--runs-dir", str(tmp_path / "runs"), "--config", str(config))
    watch(*arguments, "--state-dir", str(state), "--once", port=web.port)
    assert told(web) == [(RUN_ID, "failed", "firing")]
    assert not run.dir.monitor.exists()
    assert len(lines(state / RUN_ID / "alerts.jsonl")) == 1


def test_the_history_has_a_line_for_every_change(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, config={})
    me = ProcessRef.of(os.getpid())
    assert me is not None
    run.submit(process=me.as_json())
    run.begin()
    for last in (3, 3, 5):
        run.steps(last - 1, last, tokens_per_s=50.0)
        watch(str(run.dir.root), "--once")
    history = lines(run.dir.monitor / "history.jsonl")
    assert [line["step"] for line in history] == [3, 5]
    assert history[1]["tokens_per_s"] == 50.0
    assert history[1]["free_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nosuch", "--runs-dir", "."], "run: no run nosuch"),
        (["--all", "--config", "nosuch.yaml"], "--config: expected a YAML file"),
        (["--all", "--interval", "-1"], "--interval: expected seconds > 0"),
    ],
)
def test_wrong_arguments_say_what_was_expected(arguments: list[str], expected: str) -> None:
    code, _, errors = watch(*arguments)
    assert code == 2
    assert expected in errors


def test_wrong_settings_are_named_with_their_key(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, config={"alerts": {"slack_webhook": "https://hooks.slack.com/T0/B0/x"}})
    code, _, errors = watch(str(run.dir.root), "--once")
    assert code == 2
    assert "alerts.slack_webhook" in errors
    assert "hooks.slack.com" not in errors


def test_a_real_run_that_hangs_is_noticed_and_its_end_too(
    tmp_path: Path, web: HttpReceiver
) -> None:
    plan = {"steps": 500, "step_s": 0.05, "fail": {"kind": "hang", "rank": 1, "step": 5}}
    with counting_run(tmp_path / RUN_ID, plan=plan) as run:
        config = {**QUICK, "monitor": {"hang_step_s": 1, "hang_start_s": 600}}
        watcher = watch_counting(run, config, web)
        run.wait_for(lambda: (RUN_ID, "hang", "firing") in told(web))
        assert run.process is not None
        run.process.kill()
        _, errors = watcher.communicate(timeout=60)
    assert (watcher.returncode, errors) == (1, "")
    assert [(rule, event) for _, rule, event in told(web)] == [
        ("hang", "firing"),
        ("hang", "resolved"),
        ("failed", "firing"),
    ]
    alert = next(one for one in lines(run.run_dir.alerts) if one["rule"] == "hang")
    assert "in phase step at step 5" in alert["text"]


def test_a_real_run_that_finishes_is_told_once(tmp_path: Path, web: HttpReceiver) -> None:
    plan = {"steps": 30, "step_s": 0.02, "save_every": 10}
    with counting_run(tmp_path / RUN_ID, plan=plan) as run:
        watcher = watch_counting(run, QUICK, web)
        _, errors = watcher.communicate(timeout=60)
    assert (watcher.returncode, errors) == (0, "")
    assert told(web) == [(RUN_ID, "finished", "firing")]
    assert "finished after 30 steps" in web.requests[0].json["entries"][0]["text"]


def watch_counting(
    run: CountingRun, config: dict[str, Any], web: HttpReceiver
) -> subprocess.Popen[str]:
    """Make a counting run look launched, and watch it."""
    assert run.process is not None
    process = ProcessRef.of(run.process.pid)
    assert process is not None
    write_json_atomically(run.run_dir.record, {"cluster": "local", "total_steps": 500})
    submitted = {"attempt": 0, "job_id": "local", "cluster": "local", "process": process.as_json()}
    append_line(
        run.run_dir.submissions, {"v": 1, "kind": "submitted", "t": time.time()} | submitted
    )
    settings = run.run_dir.root.parent / "alerts.yaml"
    settings.write_text(json.dumps(config))
    arguments = (str(run.run_dir.root), "--config", str(settings), "--interval", "0.2")
    return start(*arguments, port=web.port)


def test_busy_time_counts_computing_and_not_waiting() -> None:
    before = busy_s()
    time.sleep(0.3)
    waited = busy_s() - before
    began = time.process_time()
    while time.process_time() - began < 0.3:
        sum(range(1000))
    computed = busy_s() - before - waited
    assert waited < 0.2 < computed


def test_a_ranks_lag_is_its_busy_time_of_a_step() -> None:
    def rank(number: int, busy: float) -> RankPoint:
        points = tuple((10 * n, 5.0 + busy * 10 * n) for n in range(8))
        return RankPoint(number, "n1", "step", 70, 0.0, 0.0, points)

    assert lag_of([rank(0, 0.5), rank(1, 0.8)]) == {0: 0.5, 1: 0.8}
    assert lag_of([rank(0, 0.5), RankPoint(1, "n1", "step", 70, 0.0, 0.0)]) == {}
    assert lag_of([rank(0, 0.5)]) == {}


def test_the_disk_is_looked_at_and_nothing_is_left(tmp_path: Path) -> None:
    facts = read_disk(tmp_path / "not" / "there")
    assert facts.path == str(tmp_path)
    assert facts.answered
    assert facts.problem == ""
    assert facts.free_bytes is not None
    assert facts.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_a_problem(tmp_path: Path) -> None:
    full = Path("/dev/shm") / f"full-{os.getpid()}"
    full.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    try:
        if mounted.returncode != 0:
            pytest.skip("mounting a small tmpfs needs root")
        assert read_disk(full).problem == "No space left on device"
        assert list(full.iterdir()) == []
    finally:
        subprocess.run(["umount", str(full)], capture_output=True, check=False)
        full.rmdir()
