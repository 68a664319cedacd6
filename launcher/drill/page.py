"""A drill's report as one self-contained HTML page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from launcher.drill.text import longest, struck
from launcher.drill.verdict import CONTROL, UNDISTURBED, Outcome
from monitor.html.line_chart import Series, line_chart
from monitor.html.page import badge, details, escape, page, section, table
from monitor.html.stacked_bars import Bar, stacked_bars
from monitor.recovery import PARTS

if TYPE_CHECKING:
    from launcher.drill.report import Report


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
            str(attempt.attempt),
            _clock(attempt.started_at),
            _clock(attempt.ended_at),
            f"{attempt.first_step or 0} to {attempt.last_step or 0}",
            escape(f"{attempt.cause}, then {attempt.action}" if attempt.cause else "not ended"),
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
