"""The chain of hashes in an audit ledger: how a line is sealed, which line breaks the chain. Pure.

A line is canonical JSON (sorted keys, no blanks, ASCII) with ``seq`` from 1, ``prev`` (hash of the
line before) and ``hash`` (SHA-256 of the rest in canonical form). So every byte of it is fixed by
its content, and its content by its hash. A chain cannot see that its own end was cut off: anchors,
kept elsewhere, can.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

VERSION = 1
_LINE_START = b'{"act":"'


class Act(StrEnum):
    """What was done."""

    LAUNCH = "launch"
    RESUME = "resume"
    CANCEL = "cancel"
    TERMINATE = "terminate"
    REQUEUE = "requeue"
    RESUBMIT = "resubmit"
    CHECKPOINT = "checkpoint"
    """A checkpoint was published."""
    MODEL = "model"
    """The trained model was exported."""
    ALERT = "alert"
    """An alert was raised, resolved, delivered, or given up."""
    EXPORT = "export"
    """This trail was exported."""


DONE, ASKED = "done", "asked"
"""Outcomes without a story; others are ``refused: ...`` and ``unknown: ...``."""


def make_entry(
    act: Act,
    *,
    via: str,
    outcome: str = DONE,
    job_id: str = "",
    attempt: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a line: who, what, when (UTC seconds), with what outcome; no chain yet."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a uid without a name, as in many containers
    return {
        "v": VERSION,
        "t": round(time.time(), 6),
        "act": str(act),
        "outcome": outcome,
        "who": {
            "uid": os.getuid(),
            "user": user,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "via": via,
        },
        "job_id": job_id,
        "attempt": attempt,
        "facts": dict(facts or {}),
    }


class Damage(StrEnum):
    """What was done to a ledger."""

    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    REWRITTEN = "rewritten"
    """Lines are valid by themselves, but are not those that were written."""


@dataclass(frozen=True)
class Anchor:
    """That line ``seq`` of a ledger had this hash, as something other than the ledger says."""

    seq: int
    hash: str


@dataclass(frozen=True)
class Broken:
    """The first line that is not what was written; ``line`` counts from 1."""

    line: int
    damage: Damage
    why: str


@dataclass(frozen=True)
class LedgerCheck:
    """What the check of one ledger found."""

    entries: tuple[Mapping[str, Any], ...]
    """Entries up to the first broken line."""
    head: Anchor
    broken: Broken | None = None
    torn: bool = False
    """The writer was killed in the middle of its last line, before it counted: no tampering."""
    anchored: int = 0
    """Up to which line an anchor vouches that nothing was cut off."""


def canonical(value: Any) -> bytes:
    """The one way to write ``value`` as JSON.

    Raises:
        ValueError: a number is not finite.
        TypeError: it is no JSON value.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def genesis(name: str) -> str:
    """What the first line of the ledger ``name`` has in place of the hash before it."""
    return hashlib.sha256(name.encode()).hexdigest()


def seal(entry: Mapping[str, Any], seq: int, previous: str) -> tuple[bytes, str]:
    """The line (with its newline) that makes ``entry`` part of the chain, and its hash."""
    body = {**entry, "seq": seq, "prev": previous}
    digest = hashlib.sha256(canonical(body)).hexdigest()
    return canonical({**body, "hash": digest}) + b"\n", digest


def check(name: str, data: bytes, anchors: Iterable[Anchor] = ()) -> LedgerCheck:
    """Find the first line of the ledger ``name`` that was not written like this, if any."""
    *lines, tail = data.split(b"\n")
    parsed = [_parse(line) for line in lines]
    head, entries, broken = Anchor(0, genesis(name)), list[dict[str, Any]](), None
    for number, entry in enumerate(parsed, start=1):
        broken = _why_broken(parsed, number, head.hash)
        if broken is not None or entry is None:
            break
        head = Anchor(number, entry["hash"])
        entries.append(entry)
    known = sorted(anchors, key=lambda one: one.seq)
    broken = broken or _contradiction(known, [one["hash"] for one in entries], tail)
    # These bytes can be the beginning of an entry whose writer was killed.
    may_be_torn = tail.startswith(_LINE_START) or _LINE_START.startswith(tail)
    if broken is None and tail and not may_be_torn:
        broken = Broken(len(lines) + 1, Damage.INSERTED, "what follows the last line is no entry")
    torn = broken is None and bool(tail)
    vouched = max((one.seq for one in known), default=0)
    return LedgerCheck(tuple(entries), head, broken, torn, vouched)


def _parse(line: bytes) -> dict[str, Any] | None:
    """An entry whose every byte is what its own hash says; else None."""
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or canonical(entry) != line:
            return None
        body = {key: value for key, value in entry.items() if key != "hash"}
        digest = hashlib.sha256(canonical(body)).hexdigest()
    except (ValueError, TypeError, RecursionError):
        return None
    whole = isinstance(entry.get("seq"), int) and isinstance(entry.get("prev"), str)
    return entry if whole and entry.get("hash") == digest else None


def _why_broken(
    parsed: Sequence[Mapping[str, Any] | None], number: int, head: str
) -> Broken | None:
    """Why line ``number`` does not continue the chain that ends in ``head``; None when it does."""
    entry = parsed[number - 1]
    if entry is None:
        follower = parsed[number] if number < len(parsed) else None
        if follower is not None and (follower["seq"], follower["prev"]) == (number, head):
            return Broken(number, Damage.INSERTED, "the next line continues the one before it")
        return Broken(number, Damage.CHANGED, "its content does not match its own hash")
    seq = entry["seq"]
    if seq < number:
        return Broken(number, Damage.INSERTED, f"it says that it is line {seq}")
    if seq > number:
        if any(later is not None and later["seq"] == number for later in parsed[number:]):
            return Broken(number, Damage.REORDERED, f"it is line {seq}; line {number} comes later")
        gone = f"line {number}" if seq == number + 1 else f"lines {number} to {seq - 1}"
        return Broken(number, Damage.REMOVED, f"here was {gone}; the next one left is line {seq}")
    if entry["prev"] != head:
        before = "the ledger's name" if number == 1 else f"line {number - 1}"
        why = f"it does not continue {before}: one of the two was replaced"
        return Broken(number, Damage.REWRITTEN, why)
    return None


def _contradiction(anchors: Sequence[Anchor], hashes: Sequence[str], tail: bytes) -> Broken | None:
    """The first anchor that a chain, valid by itself, contradicts; ``tail`` has no newline."""
    for anchor in anchors:
        if anchor.seq > len(hashes) and tail:
            why = "it was whole once, and does not end with a newline now"
            return Broken(len(hashes) + 1, Damage.CHANGED, why)
        if anchor.seq > len(hashes):
            why = f"the ledger had at least {anchor.seq} lines and has {len(hashes)}"
            return Broken(len(hashes) + 1, Damage.REMOVED, f"its end was cut off: {why}")
        if anchor.seq > 0 and hashes[anchor.seq - 1] != anchor.hash:
            why = "the line has another hash than when it was written"
            return Broken(anchor.seq, Damage.REWRITTEN, why)
    return None
