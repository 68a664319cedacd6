"""A preflight's record for the terminal: what is wrong node by node, and a line to paste. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from launcher.assess.finding import Finding, Level
from launcher.assess.show import findings_table
from monitor.preflight import in_words


def findings_of(record: Mapping[str, Any]) -> dict[str, list[Finding]]:
    """Findings by node."""
    return {
        node: [
            Finding(one["id"], Level(one["level"]), one["evidence"], one["remedy"]) for one in found
        ]
        for node, found in record["findings"].items()
    }


def nodes_table(record: Mapping[str, Any]) -> Table:
    """What is not ok on every node; a node where all is well is one row."""
    rows: list[Finding] = []
    for node, found in findings_of(record).items():
        bad = [one for one in found if one.level is not Level.OK]
        rows += [
            Finding(f"{node}  {one.id}", one.level, one.evidence, one.remedy)
            for one in sorted(bad, key=lambda one: one.level is not Level.FAIL)
        ]
        if not bad:
            rows.append(Finding(node, Level.OK, f"{len(found)} checks{_numbers(found)}"))
    return findings_table(rows)


def _numbers(found: Sequence[Finding]) -> str:
    """What the ranks measured there, if they ran."""
    shown = [one.evidence for one in found if one.id in ("ranks.reduce", "ranks.compute")]
    return f"; {'; '.join(shown)}" if shown else ""


def closing_lines(record: Mapping[str, Any], folder: object) -> list[str]:
    """The verdict, the exclusion to paste, and where the rest is."""
    lines = [in_words(record)]
    if record["unfit"]:
        named = ",".join(record["unfit"])
        lines.append(f"to leave them out: --exclude={named}   (slurm.exclude={named})")
    return [*lines, f"all of it: {folder}"]
