"""``python -m monitor audit``: show, verify or export the trail of runs."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from submitrain.errors import RunError, UserError
from submitrain.monitor.audit.chain import Act
from submitrain.monitor.audit.ledger import AuditLedger, Trail, read_trail
from submitrain.run_folder import RunDir, select_runs, write_text_atomically
from submitrain.text import aligned

_COLUMNS = ("time", "run", "act", "outcome", "user", "uid", "host", "via", "job_id", "attempt")


def main(options: argparse.Namespace) -> int:
    """Run the command; 1 when a ledger is broken."""
    folders = select_runs(options.runs, everything=options.all, runs_dir=Path(options.runs_dir))
    if options.action == "verify":
        return _verify(folders, options)
    if options.action == "export":
        for folder in folders:
            AuditLedger(RunDir(folder), "monitor").note(Act.EXPORT, facts={"to": options.output})
    trails = [read_trail(RunDir(folder)) for folder in folders]
    text = _rendered(trails, options.format or ("json" if options.action == "export" else "table"))
    if options.action == "export" and options.output:
        try:
            write_text_atomically(Path(options.output), text)
        except OSError as error:
            raise UserError(f"--output: expected a file that can be written: {error}") from error
    else:
        print(text, end="")
    for trail in trails:
        for line in _errors(trail):
            print(f"error: {line}", file=sys.stderr)
    return 1 if any(trail.broken for trail in trails) else 0


def _verify(folders: Sequence[Path], options: argparse.Namespace) -> int:
    if options.head and len(folders) != 1:
        raise UserError("--head: expected one run with it")
    trails = [read_trail(RunDir(folder)) for folder in folders]
    moved = bool(options.head) and trails[0].head != options.head
    if options.format == "json":
        print(json.dumps([_as_json(trail) for trail in trails], indent=2))
    else:
        for trail in trails:
            for line in [*_errors(trail), *_notes(trail)]:
                print(line)
            state = "BROKEN" if trail.broken else "intact"
            lines = sum(len(one.entries) for one in trail.ledgers.values())
            size = f"{lines} lines in {len(trail.ledgers)} ledgers"
            print(f"{trail.folder.name}: {state}, {size}, head {trail.head}")
    if moved:
        raise RunError(
            f"--head: expected {options.head}, got {trails[0].head}: the trail is not the one that "
            "this was the head of, or it has grown since"
        )
    return 1 if any(trail.broken for trail in trails) else 0


def _errors(trail: Trail) -> list[str]:
    return [
        f"{RunDir(trail.folder).audit / name}:{broken.line}: {broken.damage}: {broken.why}"
        for name, broken in trail.broken
    ]


def _notes(trail: Trail) -> list[str]:
    notes = []
    for name, one in trail.ledgers.items():
        path = RunDir(trail.folder).audit / name
        if one.torn:
            notes.append(
                f"{path}: note: its writer was killed within line {one.head.seq + 1}, which was "
                "never acknowledged; no tampering"
            )
        if not one.broken and one.anchored < one.head.seq:
            notes.append(
                f"{path}: note: lines after {one.anchored} are not anchored in record.json; a cut "
                "there would not be seen"
            )
    return notes


def _as_json(trail: Trail) -> dict[str, Any]:
    ledgers = {
        name: {
            "lines": len(one.entries),
            "anchored": one.anchored,
            "torn": one.torn,
            "broken": asdict(one.broken) if one.broken is not None else None,
        }
        for name, one in trail.ledgers.items()
    }
    intact = not trail.broken
    return {"run": trail.folder.name, "intact": intact, "head": trail.head, "ledgers": ledgers}


def _rendered(trails: Sequence[Trail], form: str) -> str:
    entries = [{"run": trail.folder.name, **entry} for trail in trails for entry in trail.entries]
    if form == "json":
        return json.dumps(entries, indent=2) + "\n"
    rows = [[str(value) for value in _row(entry)] for entry in entries]
    if form == "csv":
        file = StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, "facts"])
        for row, entry in zip(rows, entries, strict=True):
            writer.writerow([*row, json.dumps(entry.get("facts"), sort_keys=True)])
        return file.getvalue()
    return aligned([_COLUMNS, *rows], left=len(_COLUMNS))


def _row(entry: Mapping[str, Any]) -> list[Any]:
    who, t, attempt = entry.get("who") or {}, float(entry.get("t") or 0), entry.get("attempt")
    time = datetime.fromtimestamp(t, UTC).isoformat(timespec="seconds")
    what = [entry["run"], entry.get("act", ""), entry.get("outcome", "")]
    place = [who.get(key, "") for key in ("user", "uid", "host", "via")]
    return [time, *what, *place, entry.get("job_id", ""), "" if attempt is None else attempt]
