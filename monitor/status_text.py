"""How runs are doing, as a table of all and as labelled lines of one. Pure but for the clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

from rich.table import Table

from monitor.efficiency import Efficiency
from monitor.goodput import Goodput
from monitor.goodput_text import headline, rows
from monitor.status import RunStatus


def runs_table(found: Sequence[RunStatus]) -> Table:
    """One line for every run."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "state", "step", "loss", "val loss", "tokens/s", "left", "where", "job"):
        table.add_column(name, no_wrap=name == "run")
    for one in found:
        table.add_row(
            one.run_id,
            str(one.state),
            f"{one.step}/{one.total_steps}" if one.total_steps else str(one.step),
            _number(one.loss, "{:.4f}"),
            _number(one.validation_loss, "{:.4f}"),
            _number(one.tokens_per_s, "{:,.0f}"),
            _duration(one.eta_s),
            one.cluster,
            one.job_ids[-1] if one.job_ids else "",
        )
    return table


def status_rows(found: RunStatus) -> list[tuple[str, str]]:
    """What there is to say of one run, with its labels."""
    total = f" of {found.total_steps}" if found.total_steps else ""
    activity = found.last_activity_at
    rows = [
        ("run", found.run_id),
        ("state", f"{found.state}" + (f": {found.why}" if found.why else "")),
        ("what to do", found.todo),
        ("where", f"{found.cluster}, job {', '.join(found.job_ids) or 'none'}"),
        ("nodes", ", ".join(found.nodes)),
        ("preflight", found.preflight),
        ("attempt", f"{found.attempt}{_restarts(found)}"),
        ("step", f"{found.step}{total}"),
        ("loss", _number(found.loss, "{:.4f}")),
        ("validation loss", _number(found.validation_loss, "{:.4f}")),
        ("learning rate", _number(found.lr, "{:.3e}")),
        ("tokens/s", _number(found.tokens_per_s, "{:,.0f}")),
        (
            "memory",
            bytes_text(found.mem_bytes) and f"{bytes_text(found.mem_bytes)} at most, rank 0",
        ),
        ("time left", _duration(found.eta_s)),
        ("last activity", f"{_duration(time.time() - activity)} ago" if activity else ""),
        ("checkpoints", ", ".join(str(step) for step in found.checkpoints)),
        ("newest one", _newest_checkpoint(found)),
        ("saves", _saves(found)),
        ("left out", _left_out(found)),
        ("folder", found.folder),
    ]
    return [(label, text) for label, text in rows if text]


def efficiency_rows(found: Efficiency | None) -> list[tuple[str, str]]:
    """How much was used of what was held; that it is an estimate is said each time."""
    if found is None:
        return []
    if found.why_unknown:
        return [("efficiency", f"unknown: {found.why_unknown}")]
    memory = f" ({bytes_text(found.mem_bytes)})" if found.mem_bytes else ""
    return [
        ("CPU used", "unknown" if found.cpu is None else f"about {found.cpu:.0%} (estimate)"),
        (
            "memory used",
            f"unknown{memory}"
            if found.memory is None
            else f"about {found.memory:.0%}{memory} (estimate)",
        ),
    ]


def bytes_text(value: float | None) -> str:
    """``1.5 GB``"""
    if value is None:
        return ""
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def _restarts(found: RunStatus) -> str:
    """``; before it: 2 x preempted, 1 x hung``"""
    causes = ", ".join(f"{count} x {cause}" for cause, count in found.restarts.items())
    return f"; before it: {causes}" if causes else ""


def _newest_checkpoint(found: RunStatus) -> str:
    if not found.checkpoints:
        return ""
    parts = [f"step {found.checkpoints[-1]} of {len(found.checkpoints)} kept"]
    if found.checkpoint_at is not None:
        parts.append(f"{_duration(time.time() - found.checkpoint_at)} ago")
    if found.checkpoint_bytes is not None:
        parts.append(bytes_text(found.checkpoint_bytes))
    if found.checkpoint_save_s is not None:
        parts.append(f"saved in {found.checkpoint_save_s:.1f} s")
    return ", ".join(parts)


def _saves(found: RunStatus) -> str:
    """The automatic interval between checkpoints, where there is one and it is known."""
    if found.ckpt_interval_s is None or found.state.ended:
        return ""
    return f"automatically, every {_duration(found.ckpt_interval_s)}"


def _left_out(found: RunStatus) -> str:
    """Steps without an update and rollbacks, if there were any."""
    if not found.skipped_steps and not found.rollbacks:
        return ""
    return f"{found.skipped_steps} skipped steps, {found.rollbacks} rollbacks"


def time_rows(goodput: Goodput, *, whole: bool) -> list[tuple[str, str]]:
    """The effective share in one line, and where the rest went once the run has ended."""
    line = headline(goodput)
    parts = [("", f"{text}  {name}") for name, text in rows(goodput)] if whole else []
    return [("time", line), *parts] if line else []


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))
