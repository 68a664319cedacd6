"""Transcribes into audit ledgers what others wrote already, each line once.

``transcribe`` notes what the ranks published (checkpoints, the model) in the supervisor's ledger:
ranks write their event files only, so that nothing of the audit can hold training up.
``transcribe_alerts`` notes alerts and deliveries in the monitor's. Whoever supervises or watches
next transcribes what one that was killed could not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
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
    known = set[Key]()
    for entry in read_trail(run_dir).entries:
        facts = entry.get("facts") or {}
        at = facts.get("published_at")
        known.add((str(entry["act"]), entry.get("attempt"), facts.get("step"), at))
    try:
        with run_dir.events(0).open("rb") as lines:
            new = new_publications(lines, known)
    except FileNotFoundError:
        return 0
    entries = []
    for act, event in new:
        path = str(event.get("path") or "")
        try:
            # The manifest holds the digests of the files; it may be gone again.
            manifest = (run_dir.root / path / "manifest.json").read_bytes()
        except OSError:
            manifest = None
        facts = {
            "step": event.get("step"),
            "path": path,
            "bytes": event.get("bytes"),
            "published_at": event.get("t"),
            "manifest_sha256": hashlib.sha256(manifest).hexdigest()
            if manifest is not None
            else None,
        }
        job_id, attempt = str(event.get("job_id") or ""), event.get("attempt")
        entries.append(make_entry(act, via=ledger.via, job_id=job_id, attempt=attempt, facts=facts))
    ledger.note_all(entries)
    return len(new)


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
