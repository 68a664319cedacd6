"""Alerts in the audit trail: who raised and delivered what, once, whoever looked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from submitrain.monitor.audit.ledger import read_trail
from submitrain.monitor.cli import main
from submitrain.monitor.watch.poll import RunPoller
from submitrain.monitor.watch.watch import Watcher
from submitrain.processes import ProcessRef
from tests.alert_parts import FakeRun
from tests.receivers import http_receiver


def this_process() -> dict[str, Any]:
    me = ProcessRef.of(os.getpid())
    assert me is not None
    return me.as_json()


def watcher(run: FakeRun, *, state_dir: Path | None = None) -> Watcher:
    """A watcher as in a new process."""
    poller = RunPoller(at_once=True, state_dir=state_dir)
    return Watcher(lambda: [run.dir.root], poller, show=lambda result: None, warn=pytest.fail)


def test_alerts_are_in_the_trail_by_whom_and_when_once_for_all_monitors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with http_receiver() as web:
        run = FakeRun(tmp_path, config={"alerts": {"webhook_url": f"{web.url}/hook"}})
        run.begin()
        run.finish("failed", "rank 1 raised ValueError")
        watcher(run).once()
        run.dir.summary.unlink()
        run.submit(attempt=1, process=this_process())
        run.begin()
        watcher(run).once()
        run.finish("finished")
        for _ in range(3):
            watcher(run).once()
        sent = [entry for one in web.requests for entry in one.json["entries"]]
    trail = read_trail(run.dir)
    assert not trail.broken
    acts = [(one["outcome"], one["facts"].get("rule")) for one in trail.entries]
    assert [act for act in acts if act[0] != "delivered"] == [
        ("raised", "failed"),
        ("resolved", "failed"),
        ("raised", "finished"),
    ]
    assert acts[1] == ("delivered", None)
    assert acts[-1] == ("delivered", None)
    who = trail.entries[0]["who"]
    assert (who["uid"], who["via"]) == (os.getuid(), "monitor")
    told = [
        key
        for one in trail.entries
        if one["outcome"] == "delivered"
        for key in one["facts"]["entries"]
    ]
    assert [entry["key"] for entry in sent] == told
    assert {one["facts"]["channel"] for one in trail.entries if "channel" in one["facts"]} == {
        "webhook"
    }
    assert main(["audit", "show", str(run.dir.root)]) == 0
    assert "delivered" in capsys.readouterr().out


def test_a_message_that_no_channel_took_is_given_up_in_the_trail_without_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http_receiver() as web:
        web.status = 403
        monkeypatch.setenv("HOOK", f"{web.url}/verysecretpath")
        alerts = {"webhook_url": "${HOOK}", "give_up_s": "1s"}
        run = FakeRun(tmp_path, config={"alerts": alerts})
        run.begin()
        run.finish("failed", "rank 1 raised ValueError")
        one = watcher(run)
        one.clock = lambda: run.dir.summary.stat().st_mtime - 10
        one.once()
        watcher(run).once()
    acts = [entry["outcome"] for entry in read_trail(run.dir).entries]
    assert acts == ["raised", "given up"]
    assert "verysecretpath" not in json.dumps(read_trail(run.dir).entries)


def test_a_monitor_of_runs_that_it_may_only_read_writes_no_trail(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "runs")
    run.begin()
    run.finish("failed")
    watcher(run, state_dir=tmp_path / "state").once()
    assert (tmp_path / "state" / run.dir.run_id / "alerts.jsonl").exists()
    assert not run.dir.audit.exists()
