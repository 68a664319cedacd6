"""A run's report as one self-contained HTML page. Pure.

A report as a few lines for the terminal. Pure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from html import escape

from submitrain.attempts import Action, Attempt, Cause
from submitrain.html.charts import Bar, Series, Stretch, line_chart, stacked_bars, timeline
from submitrain.html.page import badge, details, page, section, table
from submitrain.monitor.accounting.goodput import category_rows, duration, headline
from submitrain.monitor.accounting.timeline import Category
from submitrain.monitor.diagnose.cli import render as render_diagnosis
from submitrain.monitor.report.model import MOST_ROWS, Point, Report
from submitrain.preflight_results import PreflightRow
from submitrain.status import RunState


def utc(t: float | None) -> str:
    """``2026-01-31 23:59:59``; empty for None."""
    return "" if t is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(t))


def lasted(one: Attempt) -> str:
    """How long an attempt took; empty while no end is recorded."""
    return (
        "" if one.ended_at is None else duration(round(max(0, one.ended_at - one.started_at) * 1e6))
    )


def sentence(report: Report) -> str:
    """State, progress and why in one sentence."""
    status = report.status
    total = f" of {status.total_steps}" if status.total_steps else ""
    why = f": {status.why}" if status.why else ""
    return f"{status.state} at step {status.step}{total}, attempt {status.attempt}{why}"


def render(report: Report) -> str:
    """The report's essence, one fact a line."""
    status = report.status
    lines = [status.run_id, f"  {sentence(report)}"]
    if status.loss is not None:
        validation = status.validation_loss
        more = "" if validation is None else f", validation {validation:.4f}"
        lines.append(f"  loss         {status.loss:.4f}{more}")
    if report.goodput.effective is not None:
        lines.append(f"  time         {headline(report.goodput)}")
        lines += [f"    {name:<12} {value}" for name, value in category_rows(report.goodput)[:5]]
    counts = [f"{report.count(what)} {what}" for what in ("published", "failed", "rejected")]
    lines.append(f"  checkpoints  {', '.join(counts)}")
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
        lines.append(f"  attempt {one.number:<4} {utc(one.started_at)} UTC  {lasted(one)}  {ended}")
    if report.diagnosis is not None:
        lines.append(f"  diagnosis    {report.diagnosis.kind}: {report.diagnosis.summary}")
        lines.append(f"  do           {report.diagnosis.remedy.text}")
    return "\n".join(lines)


_MOST_STRETCHES = 40
_MOST_PREFLIGHTS = 5
_SAVED = ("published", "failed", "rejected")
_CHARTS = (
    ("Learning rate", "lr", "learning rate"),
    ("Throughput", "tokens_per_s", "tokens/s"),
    ("Memory of rank 0", "mem_bytes", "GiB"),
)


def report_page(report: Report) -> str:
    """The whole page."""
    return page(f"Report of {report.status.run_id}", _body(report))


def _body(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.status.run_id)}</h1>"
    yield _origin(report)
    kind = {RunState.FINISHED: " good", RunState.FAILED: " bad"}.get(report.status.state, "")
    yield f'<p class="verdict{kind}">{escape(sentence(report))}</p>'
    if report.diagnosis is not None:
        yield section("Diagnosis", f"<pre>{escape(render_diagnosis(report.diagnosis))}</pre>")
    if loss := _loss(report):
        yield section("Loss", loss)
    for title, name, unit in _CHARTS:
        series = [Series(title.lower(), report.curves[name])]
        if chart := line_chart(series, x_label="step", y_label=unit, title=f"{title} by step"):
            yield section(title, chart)
    yield section("Attempts", *_attempts(report.attempts))
    if report.preflights:
        yield section("Nodes before training", *_preflights(report.preflights))
    if report.alerts:
        yield section("Alerts", *_alerts(report))
    if report.goodput.allocated_us:
        yield section("Where the time went", *_time(report))
    yield section("Checkpoints", *_checkpoints(report))
    if report.anomalies:
        yield section("Anomalies and rollbacks", *_anomalies(report))
    yield section("Record", *_record(report))
    yield section("Configuration", details("config.yaml", f"<pre>{escape(report.config)}</pre>"))


def _origin(report: Report) -> str:
    who = report.record.get("who") or {}
    parts = [
        f"started by {who.get('user')}@{who.get('host')}" if who else "",
        f"{utc(report.status.submitted_at)} UTC" if report.status.submitted_at else "",
        f"on {report.status.cluster}",
        f"ended {utc(report.summary['ended_at'])} UTC" if "ended_at" in report.summary else "",
    ]
    return f'<p class="faint">{escape(", ".join(part for part in parts if part))}</p>'


def _loss(report: Report) -> str:
    training = report.curves["loss"]
    losses = dict(training)
    marks = [
        (float(one["step"]), losses[one["step"]], f"{one.get('what')}: {one.get('action')}")
        for one in report.anomalies[-MOST_ROWS:]
        if one.get("step") in losses
    ]
    series = [
        Series("training", training, 0, marks=marks),
        Series("validation", report.curves["validation"], 1, dash=1),
    ]
    drawn = [one for one in series if one.points]
    chart = line_chart(
        drawn, x_label="step", y_label="loss (nats per label token)", title="Loss by step"
    )
    return chart + _not_finite(training)


def _not_finite(points: Sequence[Point]) -> str:
    """Steps that a chart cannot show; of many the first ones."""
    steps = [f"{step:.0f}" for step, value in points if not math.isfinite(value)]
    if not steps:
        return ""
    more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
    word = "steps" if len(steps) > 1 else "step"
    return f'<p class="bad">✗ not finite at {word} {", ".join(steps[:8])}{more}</p>'


def _attempts(attempts: Sequence[Attempt]) -> Iterator[str]:
    if not attempts:
        yield "<p>None has begun.</p>"
        return
    shown = attempts[-_MOST_STRETCHES:]
    yield timeline([_stretch(one, shown[0].started_at) for one in shown], title="Attempts by time")
    lines = [
        [
            str(one.number),
            utc(one.started_at),
            lasted(one),
            escape(one.job_id),
            escape(_few(one.nodes)),
            f"{one.first_step or 0} to {one.last_step or 0}" if one.cause else "",
            badge(one.cause, good=one.cause is Cause.FINISHED) if one.cause else "no end recorded",
            escape(f"{one.explanation}; then {one.action}" if one.action else ""),
        ]
        for one in attempts[-MOST_ROWS:]
    ]
    header = ("attempt", "from (UTC)", "lasted", "job", "nodes", "steps", "ended as", "because")
    yield table(header, lines)
    yield _left_out(len(attempts))


def _preflights(found: Sequence[PreflightRow]) -> Iterator[str]:
    """The last preflights, what was found fit in one line each, the rest with what to do."""
    for one in found[-_MOST_PREFLIGHTS:]:
        yield f"<p>Attempt {one.attempt}, {escape(one.mode)}: {escape(one.words)}</p>"
        lines = [
            [
                escape(remark.node),
                badge(remark.level, good=False),
                f"<code>{escape(remark.id)}</code>",
                escape(remark.evidence),
                escape(remark.remedy),
            ]
            for remark in one.remarks[:MOST_ROWS]
        ]
        if lines:
            yield table(("node", "", "check", "seen", "what to do"), lines)


def _stretch(one: Attempt, origin: float) -> Stretch:
    start = max(0.0, one.started_at - origin)
    end = start if one.ended_at is None else max(start, one.ended_at - origin)
    color = "bad" if one.action is Action.STOP else "warn"
    color = "good" if one.cause is Cause.FINISHED else color
    label = one.outcome or "no end recorded"
    return Stretch(f"attempt {one.number}", start, end, label, color)


def _few(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")


def _left_out(count: int) -> str:
    if count <= MOST_ROWS:
        return ""
    return f'<p class="faint">{count - MOST_ROWS} earlier ones are left out.</p>'


def _time(report: Report) -> Iterator[str]:
    goodput = report.goodput
    yield f"<p>{escape(headline(goodput))}</p>"
    spent = {
        str(name).replace("_", " "): goodput.rank_us[name] / 1e6
        for name in Category
        if goodput.rank_us[name]
    }
    unit = "GPU time" if goodput.gpus else "rank time"
    yield stacked_bars([Bar(unit, spent)], title=f"Seconds of {unit} by purpose")
    yield table(
        ("spent on", "share, time"), [[escape(a), escape(b)] for a, b in category_rows(goodput)]
    )


def _checkpoints(report: Report) -> Iterator[str]:
    counts = ", ".join(f"{report.count(what)} {what}" for what in _SAVED)
    kept = ", ".join(map(str, report.status.checkpoints)) or "none"
    yield f"<p>{counts}; in the folder now: {kept}</p>"
    lines = [
        [
            badge(one["what"], good=one["what"] == "published"),
            escape(str(one.get("step", one.get("path", "")))),
            utc(one.get("t")),
            f"{one['bytes'] / 1e6:,.1f}" if "bytes" in one else "",
            f"{one['blocked_s']:.2f}" if "blocked_s" in one else "",
            f"{one['save_s']:.2f}" if "save_s" in one else "",
            escape(str(one.get("reason", ""))),
        ]
        for one in report.checkpoints[-MOST_ROWS:]
    ]
    header = ("checkpoint", "step", "at (UTC)", "MB", "blocked s", "save s", "reason")
    if lines:
        yield table(header, lines, numbers=(3, 4, 5))
        yield _left_out(len(report.checkpoints))


def _anomalies(report: Report) -> Iterator[str]:
    lines = [
        [escape(str(one.get(name, "") or "")) for name in ("step", "what", "action", "loss")]
        + [utc(one.get("t")), escape(_data(one))]
        for one in report.anomalies[-MOST_ROWS:]
    ]
    yield table(("step", "what", "action", "loss", "at (UTC)", "data"), lines)
    yield _left_out(len(report.anomalies))


def _alerts(report: Report) -> Iterator[str]:
    lines = [
        [
            f'<span class="when">{utc(one["t"])}</span>',
            escape(str(one["event"])),
            escape(str(one["severity"])),
            escape(" ".join(str(one[name]) for name in ("rule", "subject") if one[name] != "run")),
            escape(str(one["text"])),
            escape(", ".join(one["channels"]) or "nobody yet"),
        ]
        for one in report.alerts[-MOST_ROWS:]
    ]
    yield table(("at (UTC)", "event", "severity", "alert", "what", "told to"), lines)
    yield _left_out(len(report.alerts))


def _data(one: dict[str, object]) -> str:
    if one.get("position") is None:
        return ""
    return f"positions {one['position']} to {one.get('end')}"


def _record(report: Report) -> Iterator[str]:
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
    yield table(
        ("record", ""),
        [[escape(name), escape(str(value))] for name, value in facts.items() if value],
    )
