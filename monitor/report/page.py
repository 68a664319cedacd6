"""A run's report as an HTML page, and as a few lines for the terminal. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from submitrain.attempts import Action, Attempt, Cause
from submitrain.html.charts import Bar, Series, Stretch, line_chart, stacked_bars, timeline
from submitrain.html.table import Cell, Row, Table
from submitrain.html.templates import page
from submitrain.monitor.accounting.goodput import category_rows, headline
from submitrain.monitor.accounting.timeline import Category
from submitrain.monitor.diagnose.cli import render as render_diagnosis
from submitrain.monitor.report.read import Report
from submitrain.preflight_results import PreflightResult
from submitrain.status import RunState
from submitrain.text import duration, utc

_MOST_ROWS = 200
"""Rows of a table; of more, the newest."""
_MOST_STRETCHES = 40
_MOST_PREFLIGHTS = 5
_CHARTS = (
    ("Learning rate", "lr", "learning rate"),
    ("Throughput", "tokens_per_s", "tokens/s"),
    ("Memory of rank 0", "mem_bytes", "GiB"),
)


def render(report: Report) -> str:
    """The report's essence, one fact a line."""
    status = report.status
    lines = [status.run_id, f"  {_sentence(report)}"]
    if status.loss is not None:
        validation = status.validation_loss
        more = "" if validation is None else f", validation {validation:.4f}"
        lines.append(f"  loss         {status.loss:.4f}{more}")
    if report.goodput.effective is not None:
        lines.append(f"  time         {headline(report.goodput)}")
        lines += [f"    {name:<12} {value}" for name, value in category_rows(report.goodput)[:5]]
    lines.append(f"  checkpoints  {_checkpoint_counts(report)}")
    if report.anomalies:
        lines.append(f"  anomalies    {len(report.anomalies)}, {status.rollbacks} rollbacks")
    if report.preflights:
        lines.append(f"  preflight    {report.preflights[-1].words}")
    if report.alerts:
        last = report.alerts[-1]
        lines.append(
            f"  alerts       {len(report.alerts)}, the last one: {last['rule']} {last['event']}"
        )
    for one in report.attempts[-5:]:
        ended = one.outcome or "no end recorded"
        lines.append(
            f"  attempt {one.number:<4} {utc(one.started_at)} UTC  {_lasted(one)}  {ended}"
        )
    if report.diagnosis is not None:
        lines.append(f"  diagnosis    {report.diagnosis.kind}: {report.diagnosis.summary}")
        lines.append(f"  do           {report.diagnosis.remedy.text}")
    return "\n".join(lines)


def report_page(report: Report) -> str:
    """The whole page."""
    status, goodput = report.status, report.goodput
    not_finite = _not_finite(report)
    charts = [("Loss", _loss_chart(report) or Markup(not_finite and " "))]
    for title, name, unit in _CHARTS:
        series = [Series(title.lower(), report.curves[name])]
        charts.append(
            (title, line_chart(series, x_label="step", y_label=unit, title=f"{title} by step"))
        )
    kinds = {RunState.FINISHED: "good", RunState.FAILED: "bad"}
    return page(
        f"Report of {status.run_id}",
        "monitor/report/report.html.j2",
        report=report,
        kind=kinds.get(status.state, ""),
        sentence=_sentence(report),
        diagnosis=render_diagnosis(report.diagnosis) if report.diagnosis else "",
        charts=[(title, chart) for title, chart in charts if chart],
        not_finite=not_finite,
        timeline=_timeline(report.attempts[-_MOST_STRETCHES:]),
        attempts=_attempts(report.attempts),
        preflights=[(one, _preflight(one)) for one in report.preflights[-_MOST_PREFLIGHTS:]],
        alerts=_table(report.alerts, _alert),
        goodput=headline(goodput) if goodput.allocated_us else "",
        time_bar=_time_bar(report),
        time=Table(("spent on", "share, time"), category_rows(goodput)),
        checkpoint_counts=_checkpoint_counts(report),
        checkpoints=_table(report.checkpoints, _checkpoint, ("MB", "blocked s", "save s")),
        anomalies=_table(report.anomalies, _anomaly),
        record=_record(report),
    )


def _table(events: Sequence[Any], row: Any, numbers: Sequence[str] = ()) -> Table | None:
    """The newest events, one a row; None without any."""
    if not events:
        return None
    found = Table.of([row(one) for one in events[-_MOST_ROWS:]], numbers=numbers)
    return Table(found.columns, found.rows, numbers, left_out=max(0, len(events) - _MOST_ROWS))


def _sentence(report: Report) -> str:
    """State, progress and why."""
    status = report.status
    total = f" of {status.total_steps}" if status.total_steps else ""
    why = f": {status.why}" if status.why else ""
    return f"{status.state} at step {status.step}{total}, attempt {status.attempt}{why}"


def _lasted(one: Attempt) -> str:
    """How long an attempt took; empty while no end is recorded."""
    if one.ended_at is None:
        return ""
    return duration(one.ended_at - one.started_at)


def _loss_chart(report: Report) -> Markup:
    losses = dict(report.curves["loss"])
    marks = [
        (float(one["step"]), losses[one["step"]], f"{one.get('what')}: {one.get('action')}")
        for one in report.anomalies[-_MOST_ROWS:]
        if one.get("step") in losses
    ]
    series = [
        Series("training", report.curves["loss"], 0, marks=marks),
        Series("validation", report.curves["validation"], 1, dash=1),
    ]
    drawn = [one for one in series if one.points]
    return line_chart(
        drawn, x_label="step", y_label="loss (nats per label token)", title="Loss by step"
    )


def _not_finite(report: Report) -> str:
    """Steps that a chart cannot show; of many the first ones."""
    steps = [f"{step:.0f}" for step, value in report.curves["loss"] if not math.isfinite(value)]
    if not steps:
        return ""
    more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
    return f"not finite at step{'s' if len(steps) > 1 else ''} {', '.join(steps[:8])}{more}"


def _timeline(attempts: Sequence[Attempt]) -> Markup:
    rows = []
    for one in attempts:
        start = max(0.0, one.started_at - attempts[0].started_at)
        end = start if one.ended_at is None else start + max(0.0, one.ended_at - one.started_at)
        color = "bad" if one.action is Action.STOP else "warn"
        color = "good" if one.cause is Cause.FINISHED else color
        label = one.outcome or "no end recorded"
        rows.append(Stretch(f"attempt {one.number}", start, end, label, color))
    return timeline(rows, title="Attempts by time")


def _attempts(attempts: Sequence[Attempt]) -> Table | None:
    def row(one: Attempt) -> Row:
        more = f" and {len(one.nodes) - 4} more" if len(one.nodes) > 4 else ""
        kind = "good" if one.cause is Cause.FINISHED else "bad"
        return {
            "attempt": str(one.number),
            "from (UTC)": utc(one.started_at),
            "lasted": _lasted(one),
            "job": one.job_id,
            "nodes": ", ".join(one.nodes[:4]) + more,
            "steps": f"{one.first_step or 0} to {one.last_step or 0}" if one.cause else "",
            "ended as": Cell(one.cause, kind) if one.cause else "no end recorded",
            "because": f"{one.explanation}; then {one.action}" if one.action else "",
        }

    return _table(attempts, row)


def _preflight(found: PreflightResult) -> Table | None:
    """What was not fit, with what to do."""
    rows: list[Row] = [
        {
            "node": one.node,
            "": Cell(one.level, "bad"),
            "check": Cell(one.id, "code"),
            "result": one.evidence,
            "what to do": one.remedy,
        }
        for one in found.remarks[:_MOST_ROWS]
    ]
    return Table.of(rows) if rows else None


def _alert(one: Mapping[str, Any]) -> Row:
    return {
        "at (UTC)": Cell(utc(one["t"]), "when"),
        "event": str(one["event"]),
        "severity": str(one["severity"]),
        "alert": " ".join(str(one[name]) for name in ("rule", "subject") if one[name] != "run"),
        "what": str(one["text"]),
        "told to": ", ".join(one["channels"]) or "nobody yet",
    }


def _time_bar(report: Report) -> Markup:
    spent = {
        str(name).replace("_", " "): report.goodput.rank_us[name] / 1e6
        for name in Category
        if report.goodput.rank_us[name]
    }
    unit = "GPU time" if report.goodput.gpus else "rank time"
    return stacked_bars([Bar(unit, spent)], title=f"Seconds of {unit} by purpose")


def _checkpoint_counts(report: Report) -> str:
    return ", ".join(f"{report.count(what)} {what}" for what in ("published", "failed", "rejected"))


def _checkpoint(one: Mapping[str, Any]) -> Row:
    return {
        "checkpoint": Cell(one["what"], "good" if one["what"] == "published" else "bad"),
        "step": str(one.get("step", one.get("path", ""))),
        "at (UTC)": utc(one.get("t")),
        "MB": f"{one['bytes'] / 1e6:,.1f}" if "bytes" in one else "",
        "blocked s": f"{one['blocked_s']:.2f}" if "blocked_s" in one else "",
        "save s": f"{one['save_s']:.2f}" if "save_s" in one else "",
        "reason": str(one.get("reason", "")),
    }


def _anomaly(one: Mapping[str, Any]) -> Row:
    known = one.get("position") is not None
    return {
        **{name: str(one.get(name) or "") for name in ("step", "what", "action", "loss")},
        "at (UTC)": utc(one.get("t")),
        "data": f"positions {one['position']} to {one.get('end')}" if known else "",
    }


def _record(report: Report) -> Table:
    record = report.record
    who, git = record.get("who") or {}, record.get("git") or {}
    packages = record.get("packages") or {}
    facts = {
        "who": f"{who.get('user', '')}@{who.get('host', '')}" if who else "",
        "when": record.get("when"),
        "command": " ".join(map(str, record.get("command") or ())),
        "commit": " ".join(f"{key} {value}" for key, value in git.items() if value is not None),
        "python": record.get("python"),
        "system": record.get("os"),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "jobs": ", ".join(report.status.job_ids),
        "device": report.setup.get("device"),
        "parameters": report.setup.get("parameters"),
        "batch": report.setup.get("batch"),
        "folder": report.status.folder,
    }
    return Table(("record", ""), [(name, str(value)) for name, value in facts.items() if value])
