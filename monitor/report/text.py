"""A report as a few lines for the terminal. Pure."""

from __future__ import annotations

import time

from monitor.goodput_text import headline, rows, span
from monitor.report.model import AttemptRow, Report


def utc(t: float | None) -> str:
    """``2026-01-31 23:59:59``; empty for None."""
    return "" if t is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(t))


def lasted(one: AttemptRow) -> str:
    """How long an attempt took; empty while no end is recorded."""
    return "" if one.ended_at is None else span(round(max(0, one.ended_at - one.started_at) * 1e6))


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
        lines += [f"    {name:<12} {value}" for name, value in rows(report.goodput)[:5]]
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
        ended = f"{one.cause}, then {one.action}" if one.cause else "no end recorded"
        lines.append(
            f"  attempt {one.attempt:<4} {utc(one.started_at)} UTC  {lasted(one)}  {ended}"
        )
    if report.diagnosis is not None:
        lines.append(f"  diagnosis    {report.diagnosis.kind}: {report.diagnosis.summary}")
        lines.append(f"  do           {report.diagnosis.remedy.text}")
    return "\n".join(lines)
