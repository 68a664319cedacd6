"""What is known of a drill so far, and the files that say it."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.drill.plan import DrillPlan
from launcher.drill.verdict import CONTROL, INTERRUPTED, UNDISTURBED, Outcome
from train.rundir import write_text_atomically

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
    from launcher.drill.page import drill_page

    text = json.dumps(report.as_json(), indent=1) + "\n"
    write_text_atomically(report.folder / JSON_NAME, text)
    write_text_atomically(report.folder / HTML_NAME, drill_page(report))
