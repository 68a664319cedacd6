r"""Finds the lines of a log that speak of a failure: block by block, in bounded memory.

Blocks are whole lines (``\n`` or ``\r`` end one), except where a line is gigantic.

A healthy log says the same few things with other numbers. One ``bytes.translate`` lowers the case,
deletes digits and blanks out punctuation; what is left of a line is its template. Templates that
were never seen are searched for words that the index of rules suspects; lines with such a word go
to the rules it leads to. So the number of rules costs nothing on a long log. Memory is bounded:
what is too long or too much is forgotten and judged again.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from submitrain.monitor.diagnose.match import (
    RuleIndex,
    clean,
    meaning_of,
    moment_of,
    node_of,
    rank_of,
    rank_of_file,
    rule_index,
    shown,
)
from submitrain.monitor.diagnose.model import FailureClass, Finding, Trust

MAX_TEMPLATE = 512
MAX_TEMPLATES = 20_000
MAX_WORD = 40
MAX_WORDS = 20_000
PATIENCE = 50
"""Lines of one template that may match no rule before the template is taken for healthy."""
PATIENCE_WITH_CODES = 2000
"""The same for templates whose deleted digits may be an exit code or the like."""
_CODES = (b"exit", b"xid", b"errno", b"code", b"status", b"client error", b"signal")
_LETTERS = bytes(range(0x61, 0x7B))
_DELETED = b"0123456789"
_BETWEEN = b" \n "


_TABLE = bytes(
    0x0A if byte in b"\r\n" else byte if byte in _LETTERS else 0x20
    for byte in (*range(0x41), *_LETTERS, *range(0x5B, 256))
)


def template_of(data: bytes) -> bytes:
    r"""Lower case, digits deleted, everything but letters a blank; ``\r`` ends lines too."""
    return data.translate(_TABLE, _DELETED)


@dataclass
class Suspect:
    """A template whose lines are examined, the rules for them, and the patience left."""

    rules: Sequence[int]
    patience: int


class Prefilter:
    """Remembers which templates and words are harmless, and which are suspicious."""

    def __init__(self, index: RuleIndex) -> None:
        self._index = index
        self._harmless: set[bytes] = set()
        self._suspects: dict[bytes, Suspect] = {}
        self._words: dict[bytes, frozenset[int]] = {}

    def candidates(self, block: bytes) -> list[tuple[int, Suspect]]:
        """Indices of the lines of ``block`` to examine, in order, with the rules for each."""
        templates = template_of(block).split(b"\n")
        fresh = set(templates) - self._harmless
        hot = {one: self._suspects[one] for one in fresh & self._suspects.keys()}
        # Where hardly a line comes twice, remembering them is all the work and no gain.
        known = len(self._harmless) + len(self._suspects)
        worth = len(fresh) < len(templates) * 0.75 or known < MAX_TEMPLATES // 2
        hot |= self._judge(fresh - hot.keys(), remember=worth)
        if not hot:
            return []
        return [(index, hot[one]) for index, one in enumerate(templates) if one in hot]

    def record_miss(self, line: bytes, suspect: Suspect) -> None:
        """No rule matched ``line``: after enough of these its template counts as healthy."""
        suspect.patience -= 1
        if suspect.patience <= 0:
            template = template_of(line)
            self._suspects.pop(template, None)
            self._harmless.add(template)

    def _judge(self, fresh: set[bytes], *, remember: bool) -> dict[bytes, Suspect]:
        """The suspicious ones among templates that were never seen."""
        if not fresh:
            return {}
        lines = list(fresh)
        text = b" " + _BETWEEN.join(lines) + b" "
        found: dict[int, frozenset[int]] = {}
        line = seen = 0
        for place, word in sorted(self._index.suspicious(text)):
            rules = self._rules_of(word)
            if rules:
                line, seen = line + text.count(_BETWEEN, seen, place), place
                found[line] = found.get(line, frozenset()) | rules
        hot = {
            lines[line]: Suspect(
                sorted(rules),
                PATIENCE_WITH_CODES if any(word in lines[line] for word in _CODES) else PATIENCE,
            )
            for line, rules in found.items()
        }
        if remember:
            self._remember(fresh, hot)
        return hot

    def _rules_of(self, word: bytes) -> frozenset[int]:
        """The rules that a suspicious word leads to; each word is looked up once."""
        rules = self._words.get(word)
        if rules is None:
            rules = self._index.rules_of(word)
            if len(self._words) >= MAX_WORDS:
                self._words.clear()
            if len(word) <= MAX_WORD:
                self._words[word] = rules
        return rules

    def _remember(self, fresh: set[bytes], hot: dict[bytes, Suspect]) -> None:
        if len(self._harmless) + len(fresh) > MAX_TEMPLATES:
            self._harmless.clear()
        if len(self._suspects) + len(hot) > MAX_TEMPLATES:
            self._suspects.clear()
        harmless = fresh - hot.keys() if hot else fresh
        if max(map(len, fresh)) > MAX_TEMPLATE:
            harmless = {one for one in harmless if len(one) <= MAX_TEMPLATE}
        self._harmless |= harmless
        self._suspects.update((key, one) for key, one in hot.items() if len(key) <= MAX_TEMPLATE)


BLOCK_BYTES = 256 * 1024
PIECE_BYTES = 4096
"""Longer lines are examined in pieces of this size."""
OVERLAP_BYTES = 512
KEPT_FIRST = 3
KEPT_LAST = 2
MAX_KEYS = 2048
"""Findings kept for one class, trust and rank; and how many such keys."""
CONTINUED_BYTES = 256 * 1024
CONTINUED_LINES = 3
"""So many lines with a finite loss after a failure mean that training continued."""

_FINITE_LOSS = re.compile(
    rb"(?:loss|ppl|perplexity)['\"\w]{0,20}\W{1,4}-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", re.IGNORECASE
)
_NOT_FINITE = re.compile(
    rb"(?:loss|norm|ppl|perplexity)['\"\w]{0,20}\W{1,4}[-+]?(?:nan|inf)\b", re.IGNORECASE
)
_REPORT_RANK = re.compile(rb"^\W*rank\s*:\s*(\d+)")
_REPORT_HOST = re.compile(rb"^\W*host\s*:\s*(\S+)")
_REPORT_LINE = re.compile(r"^\s*(?:exitcode|traceback)\s*:")
_REPORT_LINES = 6

ReadAt = Callable[[int, int], bytes]


@dataclass
class _Kept:
    """The first and last findings of one class, trust and rank."""

    first: list[Finding]
    last: deque[Finding]


class LogScan:
    """Collects the findings of one log; ``feed`` it blocks in order, then ask for ``findings``."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.line = 1
        """Number of the next block's first line."""
        self._prefilter = Prefilter(rule_index())
        self._kept: dict[tuple[FailureClass, Trust, int | None], _Kept] = {}
        self._file_rank = rank_of_file(source)

    def feed(self, block: bytes, offset: int) -> None:
        """Examine one block that begins at byte ``offset`` of the log."""
        candidates = self._prefilter.candidates(block)
        if candidates:
            lines = block.replace(b"\r", b"\n").split(b"\n")
            number, start, before = self.line, 0, 0
            for index, suspect in candidates:
                here = start + sum(map(len, lines[before:index])) + index - before
                number += block.count(b"\n", start, here)
                start, before = here, index
                self._examine(lines, index, suspect, number, offset + start)
        self.line += block.count(b"\n")

    def findings(self) -> list[Finding]:
        """What is kept, in the order of the log."""
        kept = [one for keep in self._kept.values() for one in (*keep.first, *keep.last)]
        return sorted(kept, key=lambda one: one.offset)

    def _examine(
        self, lines: list[bytes], index: int, suspect: Suspect, number: int, offset: int
    ) -> None:
        raw = lines[index]
        long = len(raw) > PIECE_BYTES
        for start in range(0, len(raw), PIECE_BYTES - OVERLAP_BYTES) if long else (0,):
            text = clean(raw[start : start + PIECE_BYTES])
            meaning = meaning_of(text, suspect.rules)
            if meaning is not None:
                self._keep(self._finding(text, meaning, lines, index, number, offset))
                return
        self._prefilter.record_miss(raw, suspect)

    def _finding(
        self,
        text: str,
        meaning: tuple[FailureClass, Trust],
        lines: list[bytes],
        index: int,
        number: int,
        offset: int,
    ) -> Finding:
        rank, node, first = rank_of(text), node_of(text), False
        if _REPORT_LINE.match(text):
            rank, node, first = _of_report(lines[max(0, index - _REPORT_LINES) : index])
        moment = moment_of(text)
        if moment is None:
            # The few lines before it, nearest first: a traceback carries its beginning's time.
            before = reversed(lines[max(0, index - 39) : index])
            moment = next(filter(None, (moment_of(clean(one[:200])) for one in before)), None)
        return Finding(
            kind=meaning[0],
            trust=meaning[1],
            text=shown(text),
            source=self.source,
            line=number,
            offset=offset,
            rank=self._file_rank if rank is None else rank,
            node=node,
            moment=moment,
            first=first,
        )

    def _keep(self, finding: Finding) -> None:
        key = (finding.kind, finding.trust, finding.rank)
        keep = self._kept.get(key)
        if keep is None:
            if len(self._kept) < MAX_KEYS:
                self._kept[key] = _Kept([finding], deque(maxlen=KEPT_LAST))
        elif len(keep.first) < KEPT_FIRST:
            keep.first.append(finding)
        else:
            keep.last.append(finding)


def _of_report(before: list[bytes]) -> tuple[int | None, str | None, bool]:
    """Rank and host of an entry in torchrun's report, and whether it names the first failure."""
    rank = next((int(m[1]) for one in reversed(before) if (m := _REPORT_RANK.match(one))), None)
    host = next((m[1] for one in reversed(before) if (m := _REPORT_HOST.match(one))), None)
    first = any(b"Root Cause" in one for one in before)
    return rank, host.decode("utf-8", "replace") if host else None, first


def with_survivals(findings: list[Finding], read_at: ReadAt) -> list[Finding]:
    """The findings, marked where training continued afterwards; ``read_at(offset, size)`` reads."""
    return [
        replace(one, survived=training_continued(read_at(one.offset, CONTINUED_BYTES)))
        if one.trust < Trust.KERNEL
        else one
        for one in findings
    ]


def training_continued(after: bytes) -> bool:
    """Whether the text that begins with a failure continues with lines of healthy training."""
    lines = after.replace(b"\r", b"\n").split(b"\n")[1:]
    healthy = 0
    for line in lines:
        if len(line) < PIECE_BYTES and _FINITE_LOSS.search(line) and not _NOT_FINITE.search(line):
            healthy += 1
            if healthy >= CONTINUED_LINES:
                return True
    return False


def scan_file(
    path: Path, *, name: str | None = None, last_bytes: int | None = None
) -> list[Finding]:
    """Findings of a log, marked where training continued; ``last_bytes``: of its end only.

    Line numbers then count from there.

    Raises:
        OSError: the file cannot be read.
    """
    scan = LogScan(name or str(path))
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        start = 0 if last_bytes is None else max(0, size - last_bytes)
        for block, offset in _blocks(file, start):
            scan.feed(block, offset)

        def read_at(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        return with_survivals(scan.findings(), read_at)


def _blocks(file: BinaryIO, start: int) -> Iterator[tuple[bytes, int]]:
    """Blocks of whole lines and their offsets; a line larger than a block comes in pieces."""
    file.seek(start)
    offset, rest = start, b""
    while chunk := file.read(BLOCK_BYTES - len(rest)):
        data = rest + chunk
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut and len(data) >= BLOCK_BYTES:
            cut = data.rfind(b" ") + 1 or len(data)
        if cut:
            yield data[:cut], offset
        offset, rest = offset + cut, data[cut:]
    if rest:
        yield rest, offset


def scan_text(text: str, *, name: str = "") -> list[Finding]:
    """Findings of a log that is at hand as text."""
    data = text.encode("utf-8", "surrogateescape")
    scan = LogScan(name)
    for start in range(0, len(data), BLOCK_BYTES):
        scan.feed(data[start : start + BLOCK_BYTES], start)
    return with_survivals(scan.findings(), lambda offset, size: data[offset : offset + size])
