"""A run as a card in a notebook: state, progress, loss, what happened, where to look. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import quote

from launcher.chart import loss_chart
from launcher.progress import time_left
from launcher.sight import Sight
from monitor.html.fragment import fragment
from monitor.status import RunState, RunStatus
from train.rundir import RunDir

_KIND = {
    RunState.FINISHED: "good",
    RunState.FAILED: "bad",
    RunState.CANCELLED: "warn",
    RunState.STOPPED: "warn",
    RunState.UNKNOWN: "warn",
}
_SIGN = {"good": "&#10003; ", "bad": "&#10007; ", "warn": "&#9679; ", "": "&#9656; "}


def card(status: RunStatus, sight: Sight, *, failure: str | None = None, here: Path) -> str:
    """HTML of the card; links are relative to ``here``, the notebook's folder."""
    parts = [
        _head(status, said=bool(failure)),
        _bar(status),
        _facts(status),
        loss_chart(sight),
        _notes(status, sight, failure),
        _links(status, here),
    ]
    return fragment("".join(parts))


def _head(status: RunStatus, *, said: bool) -> str:
    kind = _KIND.get(status.state, "")
    tell = status.why and not said
    why = f'<span class="faint">{escape(status.why)}</span>' if tell else ""
    return (
        f'<div class="head"><span class="name">{escape(status.run_id)}</span>'
        f'<span class="state {kind}">{_SIGN[kind]}{status.state}</span>{why}</div>'
    )


def _bar(status: RunStatus) -> str:
    if not status.total_steps:
        return ""
    share = min(100.0, 100.0 * status.step / status.total_steps)
    kind = _KIND.get(status.state, "")
    return f'<div class="bar"><div class="{kind}" style="width: {share:.1f}%"></div></div>'


def _facts(status: RunStatus) -> str:
    total = f" of {status.total_steps}" if status.total_steps else ""
    saved = status.checkpoints[-1] if status.checkpoints else None
    facts = [
        f"step <b>{status.step}</b>{total}",
        _value("loss", status.loss, "{:.4f}"),
        _value("validation", status.validation_loss, "{:.4f}"),
        _value("", status.tokens_per_s, "{:,.0f} tokens/s"),
        time_left(status.eta_s),
        f"attempt {status.attempt}" if status.attempt > 1 else "",
        f"saved at {saved}" if saved is not None else "",
        escape(f"{status.cluster} job {status.job_ids[-1]}" if status.job_ids else status.cluster),
    ]
    spans = "".join(f"<span>{fact}</span>" for fact in facts if fact)
    return f'<div class="facts">{spans}</div>'


def _value(label: str, value: float | None, form: str) -> str:
    return "" if value is None else f"{label} {form.format(value)}".strip()


def _notes(status: RunStatus, sight: Sight, failure: str | None) -> str:
    new = [note for note in sight.notes if not (status.why and status.why in note)]
    lines = "".join(f"<li>{escape(note)}</li>" for note in new)
    first = f'<pre class="bad">{escape(failure)}</pre>' if failure else ""
    return (f'<ul class="faint">{lines}</ul>' if lines else "") + first


def _links(status: RunStatus, here: Path) -> str:
    run_dir = RunDir(Path(status.folder))
    found = "".join(
        f'<span><a href="{_target(path, here)}" target="_blank">{escape(label)}</a></span>'
        for label, path in _files(run_dir, status.attempt)
    )
    folder = f'<span class="faint">{escape(_shown(run_dir.root, here))}</span>'
    return f'<div class="facts">{found}{folder}</div>'


def _files(run_dir: RunDir, attempt: int) -> Iterator[tuple[str, Path]]:
    """What there is to read of a run."""
    candidates = [
        ("report", run_dir.reports / "report.html"),
        ("output of rank 0", run_dir.log(attempt, 0, "out")),
        ("errors of rank 0", run_dir.log(attempt, 0, "err")),
        ("configuration", run_dir.config),
    ]
    yield from ((label, path) for label, path in candidates if path.exists())


def _target(path: Path, here: Path) -> str:
    return quote(_shown(path, here))


def _shown(path: Path, here: Path) -> str:
    """Relative to the notebook, which is how its server finds files."""
    return os.path.relpath(path, here)
