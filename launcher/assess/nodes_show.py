"""A preflight's record for the terminal: what is wrong node by node, and a line to paste. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from launcher.assess.finding import Finding, Level
from launcher.assess.show import findings_table
from monitor.preflight import in_words

MOST_NAMED = 6


def findings_of(record: Mapping[str, Any]) -> dict[str, list[Finding]]:
    """Findings by node."""
    return {
        node: [
            Finding(one["id"], Level(one["level"]), one["evidence"], one["remedy"]) for one in found
        ]
        for node, found in record["findings"].items()
    }


def nodes_table(record: Mapping[str, Any]) -> Table:
    """What is not ok, failures first and once for all nodes that share it; then the good nodes."""
    findings = findings_of(record)
    nodes_of: dict[Finding, list[str]] = {}
    for node, found in findings.items():
        for one in found:
            if one.level is not Level.OK:
                nodes_of.setdefault(one, []).append(node)
    rows = [
        replace(one, id=f"{_named(nodes)}  {one.id}")
        for one, nodes in sorted(nodes_of.items(), key=lambda item: item[0].level is not Level.FAIL)
    ]
    for node, found in findings.items():
        if not any(one.level is Level.FAIL for one in found):
            fine = sum(one.level is Level.OK for one in found)
            rows.append(Finding(node, Level.OK, f"{fine} checks are ok{_numbers(found)}"))
    return findings_table(rows)


def _named(nodes: Sequence[str]) -> str:
    more = len(nodes) - MOST_NAMED
    return ",".join(nodes[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


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
