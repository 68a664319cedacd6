"""The report of a run: thinned curves, one self-contained page, what it says of real records."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from submitrain.attempts import attempts_of
from submitrain.events import EventWriter, Kind
from submitrain.html.charts import Stretch, timeline
from submitrain.monitor.cli import main
from submitrain.monitor.report.page import render, report_page
from submitrain.monitor.report.read import read_report, thin
from submitrain.run_folder import RunDir, write_json_atomically

HOSTILE = "<script>alert('&')</script>"
VOID = {"meta", "br"}


class _Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong order; collects the names of all."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> set[str]:
    """Well-formed, and nothing comes from elsewhere or runs; returns the names of all tags."""
    parser = _Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert not parser.seen & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"(?:src|href)=|@import|url\(", text)
    return parser.seen


def eventful_run(root: Path, *, steps: int = 20, text: str = "plain") -> RunDir:
    """A failed run of two attempts, by the real writers; ``text`` wherever users' text stands."""
    run_dir = RunDir(root)
    root.mkdir(parents=True)
    run_dir.config.write_text(f"name: '{text}'\n")
    who = {"user": text, "host": text}
    write_json_atomically(run_dir.record, {"who": who, "command": [text], "git": {"commit": text}})
    for attempt in (1, 2):
        run_dir.claim_attempt()
        supervisor = EventWriter(run_dir.attempts, -1, attempt, "7")
        supervisor.write(Kind.ATTEMPT_START, nodes=[text], world_size=2, allocated_nodes=1)
        _rank_0(EventWriter(run_dir.events(0), 0, attempt, "7"), steps, text)
        supervisor.write(
            Kind.ATTEMPT_END,
            cause="program_error" if attempt == 2 else "rank_died",
            action="stop" if attempt == 2 else "restart",
            explanation=text,
            first_step=0,
            last_step=steps,
        )
    summary = {"state": "failed", "cause": "program_error", "explanation": text, "step": steps}
    write_json_atomically(run_dir.summary, {**summary, "ended_at": 1.8e9})
    return run_dir


def _rank_0(writer: EventWriter, steps: int, text: str) -> None:
    writer.write(Kind.START, host=text, pid=1, world_size=2)
    writer.write(Kind.SETUP, device=text, parameters=5, batch=text, total_steps=steps)
    for step in range(1, steps + 1):
        loss = math.nan if step == 5 else 6.0 / step
        writer.write(
            Kind.STEP, step=step, loss=loss, lr=1e-4, tokens_per_s=1e6, mem_bytes=2**31, step_s=0.1
        )
    writer.write(Kind.VALIDATION, step=steps, loss=1.5)
    writer.write(Kind.ANOMALY, step=4, what=text, action="skipped", loss="nan", position=3, end=5)
    writer.write(Kind.CHECKPOINT, step=10, path=text, bytes=5e6, blocked_s=0.1, save_s=0.2)
    writer.write(Kind.CHECKPOINT_FAILED, step=20, path=text, reason=text)
    writer.write(Kind.CHECKPOINT_REJECTED, path=text, reason=text)
    failure = {"exception": "ValueError", "message": text, "where": "a.py:3", "traceback": text}
    writer.write(Kind.FAILURE, **failure, phase="step", step=steps, victim=False)


def test_a_thinned_curve_keeps_its_ends_and_every_peak_that_matters() -> None:
    noise = random.Random(1)
    points = [(float(x), noise.random()) for x in range(100_000)]
    points[4_321] = (4_321.0, 50.0)
    points[77_777] = (77_777.0, -50.0)
    found = thin(points)
    assert 1_900 < len(found) <= 2_000
    assert {points[0], points[4_321], points[77_777], points[-1]} <= set(found)
    assert found == sorted(set(found))
    assert set(found) <= set(points)


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11, 12, 1_001])
def test_any_curve_is_thinned_to_at_most_as_many_points_as_asked(count: int) -> None:
    points = [(float(x), float(-x)) for x in range(count)]
    found = thin(points, 10)
    assert len(found) == min(count, 10)
    assert [found[0], found[-1]] == [points[0], points[-1]] if count else not found


def test_what_is_no_number_stays_in_a_short_curve_and_leaves_a_thinned_one() -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, 1.0), (3.0, 1.0)]
    assert thin(points) == points
    assert thin(points, 3) == [points[0], *points[2:]]


def test_the_last_line_about_an_attempts_end_holds_and_an_open_one_has_none() -> None:
    events = [
        {"kind": "attempt_start", "attempt": 1, "t": 10.0, "job_id": "7", "nodes": ["a"]},
        {"kind": "attempt_end", "attempt": 1, "t": 11.0, "cause": "preempted", "action": "requeue"},
        {"kind": "attempt_end", "attempt": 1, "t": 12.0, "cause": "preempted", "action": "stop"},
        {"kind": "attempt_end", "attempt": 9, "t": 12.0, "cause": "finished", "action": "done"},
        {"kind": "attempt_start", "attempt": 2, "t": 13.0, "job_id": "8", "nodes": None},
    ]
    first, second = attempts_of(events)
    assert (first.ended_at, first.action, first.nodes) == (11.0, "stop", ("a",))
    assert (second.job_id, second.ended_at, second.cause) == ("8", None, None)


def test_a_page_shows_every_part_and_escapes_what_users_wrote(tmp_path: Path) -> None:
    run_dir = eventful_run(tmp_path / "<script>run&", text=HOSTILE)
    report = read_report(run_dir.root)
    page = report_page(report)
    check_page(page)
    assert "<script>run&" not in page
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Diagnosis",
        "Loss",
        "Learning rate",
        "Throughput",
        "Memory of rank 0",
        "Attempts",
        "Where the time went",
        "Checkpoints",
        "Anomalies and rollbacks",
        "Record",
        "Configuration",
    ]
    assert "2 published, 2 failed, 2 rejected" in page
    assert "rank_died, then restart" in page


def test_a_report_says_what_the_records_say(tmp_path: Path) -> None:
    report = read_report(eventful_run(tmp_path / "run").root)
    losses = dict(report.curves["loss"])
    assert len(losses) == 20, "a step computed twice stands once"
    assert math.isnan(losses[5.0])
    assert losses[20.0] == 0.3
    assert report.curves["validation"] == [(20.0, 1.5)]
    assert set(dict(report.curves["mem_bytes"]).values()) == {2.0}
    assert report.diagnosis is not None
    assert report.diagnosis.kind == "python_exception"
    text = render(report)
    assert "failed at step 20 of 20, attempt 2: plain" in text
    assert "2 published, 2 failed, 2 rejected" in text
    assert "python_exception" in text


def test_a_huge_run_makes_a_small_page(tmp_path: Path) -> None:
    run_dir = eventful_run(tmp_path / "run", steps=15_000)
    report = read_report(run_dir.root)
    assert all(len(points) <= 2_000 for points in report.curves.values())
    assert len(report.curves["loss"]) > 1_900
    page = report_page(report)
    check_page(page)
    assert len(page) < 250_000


def test_an_empty_folder_has_a_report_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    page = report_page(read_report(tmp_path))
    check_page(page)
    assert "nothing was submitted" in page
    assert "None has begun." in page


def test_the_command_writes_the_page_and_prints_a_summary_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = eventful_run(tmp_path / "runs" / "one")
    assert main(["report", "one", "--runs-dir", str(tmp_path / "runs")]) == 0
    assert "failed at step 20" in capsys.readouterr().out
    check_page((run_dir.reports / "report.html").read_text())
    target = tmp_path / "x.html"
    assert main(["report", str(run_dir.root), "--html", str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["status"]["state"] == "failed"
    assert found["curves"]["loss"][4] == [5.0, None]
    assert target.read_text().startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_the_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = eventful_run(tmp_path / "run")
    assert main(["report", str(run_dir.root), "--html", str(tmp_path / "no" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_timeline_is_to_scale_and_escaped() -> None:
    rows = [Stretch("a", 0, 50, HOSTILE, "good"), Stretch("b", 50, 150, "x", "bad")]
    chart = timeline(rows, title=HOSTILE)
    assert "<script" not in chart
    widths = [float(width) for width in re.findall(r'<rect .*?width="([\d.]+)"', chart)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    assert timeline([], title="t") == ""
