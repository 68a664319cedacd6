"""A diagnosis as text for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from monitor.diagnose.model import Diagnosis


def render(found: Diagnosis) -> str:
    """Class, place, evidence, consequences and what to do, one fact a line."""
    return "\n".join(_lines(found))


def _lines(found: Diagnosis) -> Iterator[str]:
    yield f"{found.kind}  (confidence {found.confidence:.2f})"
    yield f"  {found.summary}"
    if found.rank is not None or found.node:
        rank = "" if found.rank is None else f"rank {found.rank}"
        yield "  where     " + ", ".join(part for part in (rank, found.node) if part)
    yield f"  do        {found.remedy.step.replace('_', ' ')}: {found.remedy.text}"
    for one in found.evidence:
        yield f"  evidence  {one.place or 'text'}  {one.text}"
    for one in found.victims:
        label = "survived" if one.survived else "also"
        yield f"  {label:<9} {one.place or 'text'}  {one.kind}: {one.text}"
    for note in found.notes:
        yield f"  note      {note}"
