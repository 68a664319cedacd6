"""A drill's report as one self-contained HTML page.

A drill's report for the terminal.

What is known of a drill so far, and the files that say it.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from submitrain.html.charts import Bar, Series, line_chart, stacked_bars
from submitrain.html.page import badge, details, page, section, table
from submitrain.launcher.drill.compare import PARTS, Recovery
from submitrain.launcher.drill.judge import CONTROL, INTERRUPTED, UNDISTURBED, Outcome
from submitrain.launcher.drill.scenarios import Place, Scenario
from submitrain.launcher.drill.settings import DrillPlan
from submitrain.run_folder import write_text_atomically

if TYPE_CHECKING:
    pass


JSON_NAME, HTML_NAME = "drill.json", "drill.html"


@dataclass
class Report:
    """What is known so far; ``folder`` holds the run folders and the written report."""

    plan: DrillPlan
    folder: Path
    started_at: float
    """UTC seconds."""
    outcomes: list[Outcome] = field(default_factory=list)
    interrupted: bool = False
    problem: str = ""
    """Why not all runs could be started."""
    ended_at: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every run ended as it should."""
        complete = not (self.interrupted or self.problem) and bool(self.outcomes)
        return complete and all(outcome.ok for outcome in self.outcomes)

    @property
    def sentence(self) -> str:
        """The verdict."""
        if self.ended_at is None:
            return sentence(self.outcomes, unfinished="still running")
        if self.problem:
            return sentence(self.outcomes, unfinished=f"broken off ({self.problem})")
        return sentence(self.outcomes, unfinished=INTERRUPTED if self.interrupted else "")

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plan, config = self.plan, self.plan.place.config
        return {
            "ok": self.ok,
            "verdict": self.sentence,
            "folder": str(self.folder),
            "config": plan.request.config,
            "overrides": plan.overrides,
            "warnings": list(plan.settings.warnings),
            "cluster": plan.place.cluster,
            "host": socket.gethostname(),
            "nodes": str(config.slurm.nodes),
            "world_size": config.world_size,
            "steps": plan.steps.total,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "interrupted": self.interrupted,
            "problem": self.problem,
            "runs": [outcome.as_json() for outcome in self.outcomes],
        }


def sentence(outcomes: Sequence[Outcome], *, unfinished: str = "") -> str:
    """What the drill as a whole says; ``unfinished`` tells why there may be more to come."""
    if not outcomes or outcomes[0].state == INTERRUPTED:
        return f"No verdict: {unfinished or INTERRUPTED} before the undisturbed run had finished."
    if not outcomes[0].ok:
        return "No verdict: the undisturbed run did not finish."
    disturbed = [one for one in outcomes if one.id not in (UNDISTURBED, CONTROL)]
    text = _count(disturbed) if disturbed else "no fault has struck yet."
    text = f"{unfinished}; so far {text}" if unfinished else text
    return text[0].upper() + text[1:]


def _count(disturbed: Sequence[Outcome]) -> str:
    failed = [one.id for one in disturbed if not one.ok]
    if failed:
        names = ", ".join(failed)
        return f"{len(failed)} of {len(disturbed)} faults did not end as promised: {names}."
    count = f"all {len(disturbed)} faults" if len(disturbed) > 1 else "the fault"
    exact = all(
        one.comparison is not None and one.comparison.identical
        for one in disturbed
        if one.state == "finished"
    )
    how = (
        "every step of every finished run is the undisturbed one, bit for bit"
        if exact
        else "every run ended as it should; the table says where curves differ by design"
    )
    return f"{count} ended as promised: {how}."


def write_report(report: Report) -> None:
    """Write ``drill.json`` and ``drill.html`` into the drill's folder."""

    text = json.dumps(report.as_json(), indent=1) + "\n"
    write_text_atomically(report.folder / JSON_NAME, text)
    write_text_atomically(report.folder / HTML_NAME, drill_page(report))


def catalogue_table(scenarios: Sequence[Scenario], place: Place) -> Table:
    """All faults: what they do, what they need, and whether this place allows them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("fault", "what happens", "needs", f"here ({place.cluster})"):
        table.add_column(name, overflow="fold")
    for one in scenarios:
        reason = one.why_not(place)
        here = f"no: {reason}" if reason else "yes" if one.default(place) else "when asked for"
        table.add_row(one.id, one.what, one.needs, here)
    return table


def report_parts(report: Report) -> Iterator[RenderableType]:
    """What is printed, one after the other."""
    yield ""
    yield _overview_table(report.outcomes)
    if any(outcome.recoveries for outcome in report.outcomes):
        yield ""
        yield _times(report.outcomes)
    for outcome in report.outcomes:
        if not outcome.ok:
            yield ""
            yield Text(f"{outcome.id}: {outcome.verdict}", style="red")
            if outcome.advice:
                yield Text(f"  {outcome.advice}")
    yield ""
    yield Text(report.sentence, style="bold green" if report.ok else "bold red")


def _overview_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "fault", "struck", "taken for", "then", "recovery", "lost steps", "curve"):
        table.add_column(name, overflow="fold")
    for one in outcomes:
        table.add_row(
            Text("✓", style="green") if one.ok else Text("✗", style="red"),
            one.id,
            struck(one),
            one.cause,
            one.action,
            "" if one.recovery_s is None else f"{one.recovery_s:.1f} s",
            str(one.lost_steps) if one.recoveries else "",
            curve(one),
        )
    return table


def struck(outcome: Outcome) -> str:
    """``step 13, rank 1 on node2``"""
    return "; ".join(
        f"step {one.step}"
        + ("" if one.rank is None else f", rank {one.rank}")
        + (f" on {one.host}" if one.host else "")
        for one in outcome.injections
    )


def curve(outcome: Outcome) -> str:
    """How the curve compares; of a run that did not finish, how it ended."""
    if outcome.state != "finished":
        return outcome.state
    return "" if outcome.comparison is None else outcome.comparison.text


def longest(outcome: Outcome) -> Recovery | None:
    """The recovery that took longest."""
    return max(outcome.recoveries, key=lambda one: one.total_s, default=None)


def _times(outcomes: Sequence[Outcome]) -> Table:
    """Where the time of each longest recovery went, in seconds."""
    columns = [(one.id, found) for one in outcomes if (found := longest(one)) is not None]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("seconds", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for part in PARTS:
        cells = [f"{one.seconds[part]:.2f}" if part in one.seconds else "" for _, one in columns]
        if any(cells):
            table.add_row(part.replace("_", " "), *cells)
    table.add_row("together", *[f"{one.total_s:.2f}" for _, one in columns], style="bold")
    return table


def drill_page(report: Report) -> str:
    """The whole page."""
    return page(f"Drill of {report.plan.request.config}", _body(report))


def _body(report: Report) -> Iterator[str]:
    plan, config = report.plan, report.plan.place.config
    yield f"<h1>Drill of <code>{escape(plan.request.config)}</code></h1>"
    yield (
        f'<p class="faint">{_utc(report.started_at)} to {_utc(report.ended_at)} UTC, on '
        f"{escape(plan.place.cluster)}, {config.slurm.nodes} node(s), {config.world_size} rank(s), "
        f"{plan.steps.total} steps a run, a checkpoint every {plan.steps.save_every}.</p>"
    )
    kind = "good" if report.ok else "bad"
    yield f'<p class="verdict {kind}">{escape(report.sentence)}</p>'
    yield from (f'<p class="warn">{escape(text)}</p>' for text in plan.settings.warnings)
    yield _overview(report.outcomes)
    if chart := _loss_chart(report.outcomes):
        yield section(
            "Loss",
            "<p>The broad band is the undisturbed run; a thin line that leaves it is a curve that "
            "is not the same. Circles mark where faults struck.</p>",
            chart,
        )
    if bars := _recovery_bars(report.outcomes):
        yield section(
            "Where the time of each recovery went",
            "<p>From the fault to the end of the first step that was computed afterwards; of "
            "several recoveries in a run, the longest.</p>",
            bars,
            _recovery_table(report.outcomes),
        )
    yield section("Run by run", *(_details(outcome) for outcome in report.outcomes))
    yield section(
        "What the drill changed",
        "<p>On top of your configuration, in this order; everything else is yours.</p>",
        f"<pre>{escape(chr(10).join(plan.overrides))}</pre>",
        f'<p class="faint">Run folders: <code>{escape(str(report.folder))}</code>. Checkpoints of '
        "runs that ended as they should are deleted.</p>",
    )


def _overview(outcomes: list[Outcome]) -> str:
    rows = []
    for one in outcomes:
        advice = f'<br><span class="faint">{escape(one.advice)}</span>' if one.advice else ""
        rows.append(
            [
                badge(one.id, good=one.ok),
                f'{escape(one.what)}<br><span class="faint">{escape(struck(one))}</span>',
                escape(one.cause),
                escape(one.action),
                "" if one.recovery_s is None else f"{one.recovery_s:.1f} s",
                str(one.lost_steps) if one.recoveries else "",
                escape(one.verdict) + advice,
            ]
        )
    header = ("run", "what happened, and where", "taken for", "then", "recovery", "lost", "verdict")
    return table(header, rows, numbers=(4, 5))


def _loss_chart(outcomes: list[Outcome]) -> str:
    series = []
    for index, one in enumerate(outcomes):
        losses = dict(one.losses)
        marks = [
            (float(hit.step), losses[hit.step], f"{one.id}: {hit.what}, step {hit.step}")
            for hit in one.injections
            if hit.step in losses
        ]
        points = [(float(step), losses[step]) for step in sorted(losses)]
        series.append(
            Series(one.id, points, index % 10, wide=index == 0, dash=max(0, index - 1), marks=marks)
        )
    return line_chart(
        series, x_label="step", y_label="loss (nats per label token)", title="Loss by step"
    )


def _recovery_bars(outcomes: list[Outcome]) -> str:
    bars = [
        Bar(one.id, {part.replace("_", " "): s for part, s in found.seconds.items()})
        for one in outcomes
        if (found := longest(one)) is not None
    ]
    return stacked_bars(bars, title="Seconds of each recovery by part")


def _recovery_table(outcomes: list[Outcome]) -> str:
    columns = [(one.id, found) for one in outcomes if (found := longest(one)) is not None]
    rows = [
        [
            f'{part.replace("_", " ")} <span class="faint">{escape(meaning)}</span>',
            *(f"{one.seconds[part]:.2f}" if part in one.seconds else "" for _, one in columns),
        ]
        for part, meaning in PARTS.items()
        if any(part in one.seconds for _, one in columns)
    ]
    rows.append(["<b>together</b>", *(f"<b>{one.total_s:.2f}</b>" for _, one in columns)])
    numbers = range(1, len(columns) + 1)
    return table(["seconds", *(name for name, _ in columns)], rows, numbers=list(numbers))


def _details(one: Outcome) -> str:
    attempts = [
        [
            str(attempt.number),
            _clock(attempt.started_at),
            _clock(attempt.ended_at),
            f"{attempt.first_step or 0} to {attempt.last_step or 0}",
            escape(attempt.outcome or "not ended"),
            escape(attempt.explanation),
        ]
        for attempt in one.attempts
    ]
    notes = [*(f"checkpoint refused: {text}" for text in one.rejected)]
    notes += [one.advice] if one.advice else []
    return details(
        f"{one.id}: {one.what}; {one.verdict} ({one.duration_s:.0f} s)",
        table(["attempt", "from (UTC)", "to", "steps", "ended as", "because"], attempts),
        *(f"<p>{escape(note)}</p>" for note in notes),
        f'<p class="faint"><code>{escape(one.folder)}</code></p>',
        shown=not one.ok or one.id not in (UNDISTURBED, CONTROL),
    )


def _clock(t: float | None) -> str:
    return _utc(t).partition(" ")[2]


def _utc(t: float | None) -> str:
    return "" if t is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(t))
