"""Transcribes what the ranks published into the supervisor's ledger: checkpoints, the model.

The ranks write their event files only, so that nothing of the audit can hold training up. Whoever
supervises next transcribes what a killed supervisor could not.

Transcribes the alerts of a run into the monitor's ledger: raised, reminded of, resolved, sent.

Of the two logs that the monitor keeps anyway (``alerts.jsonl``, ``deliveries.jsonl``), so that
whoever looks next writes what a killed monitor could not, and nothing is written twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from submitrain.events import Kind, parse_event
from submitrain.monitor.audit.chain import Act, make_entry
from submitrain.monitor.audit.ledger import AuditLedger, read_trail
from submitrain.run_folder import RunDir

RAISED = {"firing": "raised", "reminder": "reminded", "resolved": "resolved"}
"""Outcome of an act by the event in alerts.jsonl."""
DELIVERED = {"sent": "delivered", "given_up": "given up"}
"""The same by the outcome in deliveries.jsonl; a failed try is no act."""
_KEPT = ("rule", "subject", "severity", "fingerprint", "channel", "entries", "error")
Line = Mapping[str, Any]


def transcribe_alerts(
    run_dir: RunDir,
    ledger: AuditLedger,
    *,
    alerts: Iterable[Line],
    deliveries: Iterable[Line],
) -> int:
    """Note every transition and delivery that no ledger of the run knows yet; returns how many.

    Raises:
        SubmitrainError: the trail cannot be read.
    """
    known = {
        (entry["outcome"], (entry.get("facts") or {}).get("key"))
        for entry in read_trail(run_dir).entries
        if entry.get("act") == Act.ALERT
    }
    told = [(RAISED.get(str(line.get("event"))), line) for line in alerts]
    told += [(DELIVERED.get(str(line.get("outcome"))), line) for line in deliveries]
    told.sort(key=lambda one: float(one[1].get("t") or 0))
    attempt = run_dir.newest_attempt()
    new = []
    for outcome, line in told:
        key = (outcome, line.get("key"))
        if outcome is not None and key not in known:
            known.add(key)
            facts = {"key": line.get("key"), "at": line.get("t")}
            facts |= {name: line[name] for name in _KEPT if name in line}
            new.append(
                make_entry(Act.ALERT, via=ledger.via, outcome=outcome, attempt=attempt, facts=facts)
            )
    ledger.note_all(new)
    return len(new)


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
