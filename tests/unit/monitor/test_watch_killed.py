"""The watcher is killed with SIGKILL again and again while runs fail: all alerts arrive, once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from email.message import Message as Mail
from pathlib import Path

from submitrain.monitor.alerts.store import AlertFiles
from submitrain.monitor.audit.ledger import read_trail
from tests.alert_parts import FakeRun, lines
from tests.receivers import HttpReceiver, SmtpReceiver, http_receiver, smtp_receiver
from tests.supervised import REPOSITORY

KILLS = int(os.environ.get("SUBMITRAIN_KILLS", "15"))
"""How often; 100 take about two minutes."""
SEED = 20260101


def test_all_alerts_arrive_exactly_once_however_often_the_watcher_is_killed(
    tmp_path: Path,
) -> None:
    dice = random.Random(SEED)
    with http_receiver() as web, smtp_receiver() as mail_server:
        # Slow answers: a kill between the delivery and the word of it is what doubles messages.
        web.delay_s = mail_server.delay_s = 0.1
        runs = [_run(tmp_path, web, mail_server, number) for number in range(KILLS)]
        for run in runs:
            run.begin()
            run.steps(1, 3)
            watcher = _start(tmp_path, web)
            # The interpreter takes about 0.3 s; then a look every 50 ms, and its messages.
            time.sleep(0.25 + 0.25 * dice.random())
            _fail(run)
            time.sleep(0.35 * dice.random())
            watcher.send_signal(signal.SIGKILL)
            watcher.wait()
        _finish(tmp_path, web, runs)
    expected = Counter({(run.dir.run_id, "failed"): 1 for run in runs})
    assert _posted(web) == expected
    assert Counter(_of_mail(mail) for mail in mail_server.mails) == expected
    for run in runs:
        logged = Counter(line["key"] for line in lines(run.dir.alerts))
        assert list(logged.values()) == [1]
        trail = read_trail(run.dir)
        assert not trail.broken
        outcomes = Counter(entry["outcome"] for entry in trail.entries)
        assert outcomes == {"raised": 1, "delivered": 2}
    tries = Counter(
        line["outcome"] for run in runs for line in lines(run.dir.monitor / "deliveries.jsonl")
    )
    assert tries["sent"] == 2 * KILLS


def _run(root: Path, web: HttpReceiver, mail_server: SmtpReceiver, number: int) -> FakeRun:
    alerts = {
        "webhook_url": f"{web.url}/hook",
        "email_to": "ada@x.org",
        "smtp_port": mail_server.port,
        "group_s": 0,
    }
    name = f"toy-20260101T000000-{number:08x}"
    return FakeRun(root, name=name, config={"alerts": alerts})


def _fail(run: FakeRun) -> None:
    run.event("failure", rank=1, exception="builtins.ValueError", message="bad", step=3)
    run.end("program_error", "stop", explanation="rank 1 raised ValueError", last_step=3)
    run.finish("failed", "rank 1 raised ValueError")


def _start(root: Path, web: HttpReceiver) -> subprocess.Popen[bytes]:
    arguments = ["watch", "--all", "--runs-dir", str(root), "--interval", "0.05"]
    return subprocess.Popen(
        [sys.executable, "-m", "monitor", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _finish(root: Path, web: HttpReceiver, runs: list[FakeRun]) -> None:
    """One watcher that nobody kills, until nothing is left to send."""
    watcher = _start(root, web)
    try:
        deadline = time.monotonic() + 60
        while not all(_is_done(run) for run in runs):
            assert time.monotonic() < deadline, "something was never sent"
            assert watcher.poll() is None
            time.sleep(0.1)
        time.sleep(1.0)  # time to tell something twice, if it would
    finally:
        watcher.terminate()
        watcher.wait()


def _is_done(run: FakeRun) -> bool:
    state = AlertFiles.of(run.dir.root).load()
    return state is not None and bool(state.alerts) and not state.unsent


def _posted(web: HttpReceiver) -> Counter[tuple[str, str]]:
    entries = [entry for request in web.requests for entry in json.loads(request.body)["entries"]]
    return Counter((entry["run_id"], entry["rule"]) for entry in entries)


def _of_mail(mail: Mail) -> tuple[str, str]:
    _, _, rest = str(mail["Subject"]).replace("\n", "").partition("CRITICAL ")
    run_id, _, rule = rest.partition(": ")
    return run_id, rule
