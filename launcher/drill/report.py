"""A drill's report: on the terminal, as JSON, and as one self-contained page."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import RenderableType
from rich.text import Text

from submitrain.html.charts import Bar, Series, line_chart, stacked_bars
from submitrain.html.table import Cell, Row, Table
from submitrain.html.templates import page
from submitrain.launcher.drill.compare import PARTS, Recovery
from submitrain.launcher.drill.plan import DrillPlan
from submitrain.launcher.drill.result import CONTROL, INTERRUPTED, UNDISTURBED, Outcome
from submitrain.launcher.drill.scenarios import Place, Scenario
from submitrain.run_folder import write_text_atomically
from submitrain.text import utc

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
        """The result of the drill as a whole."""
        unfinished = INTERRUPTED if self.interrupted else ""
        unfinished = f"broken off ({self.problem})" if self.problem else unfinished
        unfinished = "still running" if self.ended_at is None else unfinished
        return sentence(self.outcomes, unfinished=unfinished)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plan, config = self.plan, self.plan.place.config
        return {
            "ok": self.ok,
            "verdict": self.sentence,
            "folder": str(self.folder),
            "config": plan.source,
            "overrides": list(plan.overrides),
            "warnings": list(plan.warnings),
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

    def write(self) -> None:
        """Write ``drill.json`` and ``drill.html`` into the drill's folder."""
        text = json.dumps(self.as_json(), indent=1) + "\n"
        write_text_atomically(self.folder / JSON_NAME, text)
        write_text_atomically(self.folder / HTML_NAME, drill_page(self))


def sentence(outcomes: Sequence[Outcome], *, unfinished: str = "") -> str:
    """What the drill as a whole says; ``unfinished`` tells why there may be more to come."""
    if not outcomes or outcomes[0].state == INTERRUPTED:
        return f"No result: {unfinished or INTERRUPTED} before the undisturbed run had finished."
    if not outcomes[0].ok:
        return "No result: the undisturbed run did not finish."
    disturbed = [one for one in outcomes if one.id not in (UNDISTURBED, CONTROL)]
    failed = [one.id for one in disturbed if not one.ok]
    if not disturbed:
        text = "no fault has been injected yet."
    elif failed:
        text = f"{len(failed)} of {len(disturbed)} faults did not end as promised: "
        text += f"{', '.join(failed)}."
    else:
        text = f"all {len(disturbed)} faults" if len(disturbed) > 1 else "the fault"
        finished = [one.comparison for one in disturbed if one.state == "finished"]
        if all(one is not None and one.identical for one in finished):
            how = "every step of every finished run is the undisturbed one, bit for bit"
        else:
            how = "every run ended as it should; the table says where curves differ by design"
        text += f" ended as promised: {how}."
    text = f"{unfinished}; so far {text}" if unfinished else text
    return text[0].upper() + text[1:]


def report_parts(report: Report) -> Iterator[RenderableType]:
    """What is printed, one after the other."""
    yield ""
    yield _overview(report.outcomes).without("what happens", "result").on_terminal()
    if times := _times(report.outcomes):
        yield ""
        yield times.on_terminal()
    for outcome in report.outcomes:
        if not outcome.ok:
            yield ""
            yield Text(f"{outcome.id}: {outcome.result}", style="red")
            if outcome.advice:
                yield Text(f"  {outcome.advice}")
    yield ""
    yield Text(report.sentence, style="bold green" if report.ok else "bold red")


def drill_page(report: Report) -> str:
    """The whole page."""
    outcomes = report.outcomes
    return page(
        f"Drill of {report.plan.source}",
        "launcher/drill/report.html.j2",
        report=report,
        plan=report.plan,
        config=report.plan.place.config,
        overview=_overview(outcomes).without("curve") if outcomes else None,
        losses=_loss_chart(outcomes),
        bars=_recovery_bars(outcomes),
        times=_times(outcomes),
        runs=[(one, _attempts(one), _shown(one)) for one in outcomes],
    )


def catalogue_table(scenarios: Sequence[Scenario], place: Place) -> Table:
    """All faults: what they do, what they need, and whether this place allows them."""
    rows: list[Row] = []
    for one in scenarios:
        reason = one.why_not(place)
        here = f"no: {reason}" if reason else "yes" if one.default(place) else "when asked for"
        what, column = {"what happens": one.what}, f"here ({place.cluster})"
        rows.append({"fault": one.id, **what, "needs": one.needs, column: here})
    return Table.of(rows)


def _overview(outcomes: Sequence[Outcome]) -> Table:
    rows: list[Row] = []
    for one in outcomes:
        curve = one.comparison.text if one.comparison else ""
        rows.append(
            {
                "run": Cell(one.id, "good" if one.ok else "bad"),
                "what happens": one.what,
                "when, where": "; ".join(
                    f"step {hit.step}"
                    + ("" if hit.rank is None else f", rank {hit.rank}")
                    + (f" on {hit.host}" if hit.host else "")
                    for hit in one.injections
                ),
                "diagnosis": one.cause,
                "then": one.action,
                "recovery": "" if one.recovery_s is None else f"{one.recovery_s:.1f} s",
                "lost steps": str(one.lost_steps) if one.recoveries else "",
                "curve": curve if one.state == "finished" else one.state,
                "result": Cell(one.result, note=one.advice),
            }
        )
    return Table.of(rows, numbers=("recovery", "lost steps"))


def _longest(outcomes: Sequence[Outcome]) -> list[tuple[str, Recovery]]:
    """The longest recovery of each run that has one."""
    return [
        (one.id, max(one.recoveries, key=lambda recovery: recovery.total_s))
        for one in outcomes
        if one.recoveries
    ]


def _times(outcomes: Sequence[Outcome]) -> Table | None:
    """Where the time of each longest recovery went, in seconds."""
    found = _longest(outcomes)
    if not found:
        return None
    rows: list[Row] = [
        {
            "seconds": Cell(part.replace("_", " "), note=meaning),
            **{name: f"{r.seconds[part]:.2f}" if part in r.seconds else "" for name, r in found},
        }
        for part, meaning in PARTS.items()
        if any(part in recovery.seconds for _, recovery in found)
    ]
    total = {name: Cell(f"{recovery.total_s:.2f}", "strong") for name, recovery in found}
    rows.append({"seconds": Cell("together", "strong"), **total})
    return Table.of(rows, numbers=[name for name, _ in found])


def _loss_chart(outcomes: Sequence[Outcome]) -> Markup:
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


def _recovery_bars(outcomes: Sequence[Outcome]) -> Markup:
    bars = [
        Bar(name, {part.replace("_", " "): s for part, s in found.seconds.items()})
        for name, found in _longest(outcomes)
    ]
    return stacked_bars(bars, title="Seconds of each recovery by part")


def _attempts(outcome: Outcome) -> Table:
    rows = [
        (
            str(one.number),
            utc(one.started_at)[11:],
            utc(one.ended_at)[11:],
            f"{one.first_step or 0} to {one.last_step or 0}",
            one.outcome or "not ended",
            one.explanation,
        )
        for one in outcome.attempts
    ]
    return Table(("attempt", "from (UTC)", "to", "steps", "ended as", "because"), rows)


def _shown(outcome: Outcome) -> bool:
    return not outcome.ok or outcome.id not in (UNDISTURBED, CONTROL)
