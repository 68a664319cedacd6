"""Transcribes the alerts of a run into the monitor's ledger: raised, reminded of, resolved, sent.

Of the two logs that the monitor keeps anyway (``alerts.jsonl``, ``deliveries.jsonl``), so that
whoever looks next writes what a killed monitor could not, and nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from monitor.audit.entry import Act, make_entry
from monitor.audit.ledger import AuditLedger
from monitor.audit.read import read_trail
from train.rundir import RunDir

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
