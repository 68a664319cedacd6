"""Audit ledgers of a run folder: one file for each writer, one write and one fsync at a time.

The head of each ledger is anchored in ``record.json``, and the first line of a ledger carries the
heads of all others, so that a tail or a file that is cut off is missed. An act that cannot be
written is loud, and stops nothing. ``read_trail`` reads and checks all of them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from submitrain.errors import RunError
from submitrain.monitor.audit.chain import (
    Act,
    Anchor,
    Broken,
    Damage,
    LedgerCheck,
    canonical,
    check,
    genesis,
    make_entry,
    seal,
)
from submitrain.run_folder import RunDir, write_json_atomically

ANCHORS = "audit"
"""Key of ``record.json``: ledger to seq and hash of its newest line."""
_LOCK_WAIT_S = 2.0
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

log = structlog.get_logger(__name__)


@dataclass
class AuditLedger:
    """One writer's ledger in a run folder; the file comes into being with the first act."""

    run_dir: RunDir
    via: str
    """How the writer acts: cli, notebook, python, supervisor, monitor."""
    path: Path | None = None
    head: Anchor = field(default=Anchor(0, ""))

    def note(self, act: Act, **content: Any) -> bool:
        """Append one act; ``content``: outcome, job_id, attempt, facts. Whether it was written."""
        return self.note_all([make_entry(act, via=self.via, **content)])

    def note_all(self, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Append several at once (one write, one fsync), all or none; whether they were written."""
        if not entries:
            return True
        try:
            self.append(entries)
        except (OSError, ValueError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            log.error("audit_not_written", acts=len(entries), why=why)
            return False
        self._anchor()
        return True

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append entries and make them durable.

        Raises:
            OSError: they were not written; nothing of them is left in the file.
            ValueError: a number in them is not finite.
            TypeError: something in them is no JSON value.
        """
        path, head = self.path, self.head
        flags = 0
        if path is None:
            host = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()) or "host"
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            name = f"{stamp}-{host}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
            path, flags = self.run_dir.audit / name, os.O_CREAT | os.O_EXCL
            head = Anchor(0, genesis(name))
            others = {name: asdict(one) for name, one in read_anchors(self.run_dir).items()}
            entries = [{**entries[0], "others": others}, *entries[1:]]
        lines = []
        for entry in entries:
            line, digest = seal(entry, head.seq + 1, head.hash)
            lines.append(line)
            head = Anchor(head.seq + 1, digest)
        path.parent.mkdir(exist_ok=True)
        self.path = None  # after an error it is uncertain what the file holds: begin another one
        _append(path, b"".join(lines), flags)
        self.path, self.head = path, head

    def _anchor(self) -> None:
        """Tell ``record.json`` the new head; a lost update only leaves an older anchor behind."""
        assert self.path is not None
        try:
            with _locked(self.run_dir.audit / ".lock"):
                record = json.loads(self.run_dir.record.read_text())
                record[ANCHORS] = {**record.get(ANCHORS, {}), self.path.name: asdict(self.head)}
                write_json_atomically(self.run_dir.record, record)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.error("audit_not_anchored", why=f"{type(error).__name__}: {error}")


def read_anchors(run_dir: RunDir) -> dict[str, Anchor]:
    """Heads of the ledgers as ``record.json`` has them; nothing where it says nothing."""
    try:
        record = json.loads(run_dir.record.read_text())
    except (OSError, ValueError):
        return {}
    return anchors_of(record.get(ANCHORS) if isinstance(record, dict) else None)


def anchors_of(value: object) -> dict[str, Anchor]:
    """Anchors by ledger, of the JSON that ``record.json`` and first lines hold."""
    if not isinstance(value, dict):
        return {}
    return {
        str(name): Anchor(one["seq"], one["hash"])
        for name, one in value.items()
        if isinstance(one, dict)
        and isinstance(one.get("seq"), int)
        and isinstance(one.get("hash"), str)
    }


def _append(path: Path, line: bytes, flags: int = 0) -> None:
    mode = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, mode | flags, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, "only a part of the line was written", str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer of ``record.json`` at a time, where the file system has locks (flock(2)).

    Raises:
        OSError: another one holds the lock for too long.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    break
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Trail:
    """The audit trail of one run: the check of each ledger, by file name."""

    folder: Path
    ledgers: Mapping[str, LedgerCheck]

    @property
    def broken(self) -> list[tuple[str, Broken]]:
        """The first broken line of each ledger that has one."""
        return [(name, one.broken) for name, one in self.ledgers.items() if one.broken]

    @property
    def entries(self) -> list[Mapping[str, Any]]:
        """All entries that hold, in the order of time."""
        found = [
            {**entry, "ledger": name}
            for name, checked in self.ledgers.items()
            for entry in checked.entries
        ]
        return sorted(
            found, key=lambda one: (float(one.get("t") or 0), str(one["ledger"]), one["seq"])
        )

    @property
    def head(self) -> str:
        """One hash over the heads of all ledgers, to be kept where nobody writes."""
        heads = {name: [one.head.seq, one.head.hash] for name, one in self.ledgers.items()}
        return hashlib.sha256(canonical(heads)).hexdigest()


def read_trail(run_dir: RunDir) -> Trail:
    """Check every ledger of a run against itself, ``record.json`` and the other ledgers.

    Raises:
        RunError: a ledger cannot be read now.
    """
    try:
        data = {path.name: path.read_bytes() for path in sorted(run_dir.audit.glob("*.jsonl"))}
    except OSError as error:
        raise RunError(
            f"audit: expected ledgers that can be read in {run_dir.audit}, got {error}"
        ) from error
    anchors: dict[str, list[Anchor]] = {name: [one] for name, one in read_anchors(run_dir).items()}
    for name, content in data.items():
        first = check(name, content).entries[:1]
        for other, anchor in anchors_of(first[0].get("others") if first else None).items():
            anchors.setdefault(other, []).append(anchor)
    checks = {name: check(name, content, anchors.get(name, ())) for name, content in data.items()}
    for name in anchors.keys() - data.keys():
        lost = max(anchor.seq for anchor in anchors[name])
        why = f"the file is gone; it had at least {lost} lines"
        broken = Broken(1, Damage.REMOVED, why)
        checks[name] = LedgerCheck((), Anchor(0, genesis(name)), broken, anchored=lost)
    return Trail(run_dir.root, dict(sorted(checks.items())))
