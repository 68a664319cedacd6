"""Transcribes what the ranks published into the supervisor's ledger: checkpoints, the model.

The ranks write their event files only, so that nothing of the audit can hold training up. Whoever
supervises next transcribes what a killed supervisor could not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monitor.audit.entry import Act, make_entry
from monitor.audit.ledger import AuditLedger
from monitor.audit.read import read_trail
from train.events import Kind, parse_event
from train.rundir import RunDir

_ACTS = {Kind.CHECKPOINT: Act.CHECKPOINT, Kind.EXPORT: Act.MODEL}
_LITERALS = tuple(f'"kind":"{kind}"'.encode() for kind in _ACTS)
Key = tuple[str, Any, Any, Any]


def transcribe(run_dir: RunDir, ledger: AuditLedger) -> int:
    """Note every publication of rank 0 that no ledger knows yet; returns how many.

    Raises:
        SubmitrainError: the trail cannot be read.
        OSError: the events cannot be read.
    """
    known = {_key(entry["act"], entry) for entry in read_trail(run_dir).entries}
    new = new_publications(_lines(run_dir.events(0)), known)
    ledger.note_all([_entry(run_dir, ledger.via, act, event) for act, event in new])
    return len(new)


def _entry(run_dir: RunDir, via: str, act: Act, event: Mapping[str, Any]) -> dict[str, Any]:
    path = str(event.get("path") or "")
    facts = {
        "step": event.get("step"),
        "path": path,
        "bytes": event.get("bytes"),
        "published_at": event.get("t"),
        "manifest_sha256": _digest(run_dir, path),
    }
    job_id = str(event.get("job_id") or "")
    return make_entry(act, via=via, job_id=job_id, attempt=event.get("attempt"), facts=facts)


def new_publications(
    lines: Iterable[bytes], known: Iterable[Key]
) -> list[tuple[Act, Mapping[str, Any]]]:
    """Events of ``lines`` that are publications and are not in ``known``. Pure."""
    seen = set(known)
    found: list[tuple[Act, Mapping[str, Any]]] = []
    for line in lines:
        event = parse_event(line) if any(one in line for one in _LITERALS) else None
        if event is None or event["kind"] not in _ACTS:
            continue
        act = _ACTS[Kind(event["kind"])]
        key = (str(act), event.get("attempt"), event.get("step"), event.get("t"))
        if key not in seen:
            seen.add(key)
            found.append((act, event))
    return found


def _key(act: object, entry: Mapping[str, Any]) -> Key:
    facts = entry.get("facts") or {}
    return (str(act), entry.get("attempt"), facts.get("step"), facts.get("published_at"))


def _lines(path: Path) -> Iterable[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return


def _digest(run_dir: RunDir, path: str) -> str | None:
    """SHA-256 of the manifest, which holds those of the files; None where it is gone again."""
    try:
        return hashlib.sha256((run_dir.root / path / "manifest.json").read_bytes()).hexdigest()
    except OSError:
        return None
