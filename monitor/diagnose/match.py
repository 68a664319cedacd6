"""What one line of a log means, and which rank, node and time it names. Pure.

Lines that healthy programs print, and the level that a logger gave a line, are known first; then
the rules decide. ``RuleIndex`` finds the few rules that a word can belong to, so that most rules
never see a line: every literal of a rule is represented by the longest run of letters in it, its
anchor (``no space left`` by ``space``). An anchor must be the beginning or the end of a word
(``OutOfMemoryError`` ends with ``error``), one of up to three letters the whole of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache, cached_property
from pathlib import PurePath

from submitrain.monitor.diagnose.model import FailureClass, Moment, Trust
from submitrain.monitor.diagnose.patterns import HARMLESS, RULES, Rule

MAX_SHOWN = 400
"""Characters of a line that are shown as evidence."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffd]+")
_TASK_PREFIX = re.compile(r"^\s*(\d{1,6}):\s")
_RANK_PREFIX = re.compile(r"^\s*\[(?:rank\s*)?(\d{1,6})\]:\s?|^\s*\[rank[ :]*(\d{1,6})\]:?\s?")
_RANK = re.compile(
    r"\[(?:[^\]\[]{0,60}\s)?rank[ :]+(\d{1,6})\]|\brank\s*[:=]\s*(\d{1,6})\b(?! \(local)|"
    r"\brank (\d{1,6})\b|\btasks? (\d{1,6})\b(?=[\d,-]*:)|\bglobal_rank[=: ]+(\d{1,6})",
    re.IGNORECASE,
)
_NODE = re.compile(
    r"^slurmstepd-([\w.-]+):|"
    r"\bON ([\w.-]+) CANCELLED|DUE TO [A-Z ]+ on ([\w.-]+)|"
    r"\bsrun: error: ([\w.-]+): tasks? |"
    r"\bnode fail\w* on ([\w.-]+)|failed on node ([\w.-]+)|"
    r"^(?:\[?\d+\]?: ?)?([A-Za-z][\w.-]*):\d+:\d+ \[\d+\] |"
    r"^\w{3} [ \d]\d \d\d:\d\d:\d\d ([\w.-]+) kernel|"
    r"^\d{4}-\d\d-\d\dT\S+ ([\w.-]+) kernel|"
    r"\bon ([\w.-]+): this job is|"
    r"\bnodes? ([\w.-]+\d[\w.-]*) (?:is |are |has |went |not )",
    re.IGNORECASE,
)
_ISO = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[T _](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?")
_GLOG = re.compile(r"\b[EWIF](\d{1,2})(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{1,9})")
_KERNEL = re.compile(r"^\[ *(\d{1,10}\.\d{3,6})\] ")
_FILE_RANK = re.compile(r"(?:^|[._-])rank[_-]?(\d{1,6})(?=[._-]|$)|^\d+_(\d{1,6})_log\.")


def clean(raw: bytes) -> str:
    """The line as text, without terminal escapes; rubbish becomes blanks."""
    text = raw.decode("utf-8", "replace")
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return _CONTROL.sub(" ", text).rstrip()


def shown(text: str) -> str:
    """The line as evidence, cut to a length that people read."""
    text = text.strip()
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."


def rank_of(line: str) -> int | None:
    """The rank that the line names, by its prefix or in its text."""
    match = _RANK_PREFIX.match(line) or _TASK_PREFIX.match(line) or _RANK.search(line)
    return _first_number(match)


def rank_of_file(path: str) -> int | None:
    """The rank in a log file's name: ``rank00003.err``, submitit's ``1234_3_log.err``."""
    return _first_number(_FILE_RANK.search(PurePath(path).name))


def node_of(line: str) -> str | None:
    """The host that the line names."""
    match = _NODE.search(line)
    if match is None:
        return None
    return next((group for group in match.groups() if group), None)


def moment_of(line: str) -> Moment | None:
    """The time that the line carries. glog writes no year, the kernel seconds since its start."""
    head = line[:160]
    if match := _ISO.search(head):
        clock, parts, fraction = "wall", [int(match[i]) for i in range(1, 7)], match[7] or "0"
    elif match := _GLOG.search(head):
        clock, parts, fraction = "glog", [2000, *(int(match[i]) for i in range(1, 6))], match[6]
    elif match := _KERNEL.match(head):
        return Moment("kernel", float(match[1]))
    else:
        return None
    year, month, day, hour, minute, second = parts
    try:
        t = datetime(year, month, day, hour, minute, second).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return Moment(clock, t + float(f"0.{fraction}"))


def _first_number(match: re.Match[str] | None) -> int | None:
    if match is None:
        return None
    return next((int(group) for group in match.groups() if group), None)


_ERROR = re.compile(r"^\W*(?:rank\W?\d+\W+)?(?:ERROR|CRITICAL|FATAL)\b|\[(?:ERROR|CRITICAL)\]")
"""A logger that says ERROR is believed."""
WHOLE_WORD_LETTERS = 3
_EDGE = WHOLE_WORD_LETTERS + 1
_RUN = re.compile(r"[a-z]+")
_Anchors = dict[bytes, set[int]]


def anchor_of(literal: str) -> str:
    """The longest run of letters in a literal, the first of equals.

    Raises:
        ValueError: the literal has no letters, so no word could ever lead to it.
    """
    runs: list[str] = _RUN.findall(literal)
    if not runs:
        raise ValueError(f"literal {literal!r}: expected letters, got none")
    return max(runs, key=len)


def _tree(words: Iterable[bytes]) -> bytes:
    """An expression for any of some words, which looks at each letter once."""
    branches: dict[bytes, list[bytes]] = {}
    for word in words:
        branches.setdefault(word[:1], []).append(word[1:])
    if b"" in branches:  # a shorter word ends here, and whatever follows fits it, too
        return b""
    parts = [letter + _tree(rests) for letter, rests in sorted(branches.items())]
    return b"(?:" + b"|".join(parts) + b")" if parts else b"(?!)"


def _letters(words: Iterable[bytes]) -> bytes:
    """An expression for the letters that may stand at each place: rejects sooner than the tree."""
    known = list(words)
    places = range(min(map(len, known), default=0))
    return b"".join(b"[" + bytes(sorted({word[i] for word in known})) + b"]" for i in places)


class RuleIndex:
    """Maps a word of a log (lower-case letters) to the positions of the rules it may lead to."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._whole: _Anchors = {}
        self._heads: dict[bytes, _Anchors] = {}
        self._tails: dict[bytes, _Anchors] = {}
        for position, one in enumerate(rules):
            for literal in one.literals:
                self._add(anchor_of(literal).encode(), position)

    def _add(self, anchor: bytes, position: int) -> None:
        if len(anchor) <= WHOLE_WORD_LETTERS:
            self._whole.setdefault(anchor, set()).add(position)
            return
        for table, edge in ((self._heads, anchor[:_EDGE]), (self._tails, anchor[-_EDGE:])):
            table.setdefault(edge, {}).setdefault(anchor, set()).add(position)

    def suspicious(self, text: bytes) -> Iterator[tuple[int, bytes]]:
        """Words of ``text`` that may lead to a rule, and where they begin; maybe twice.

        Every word has to have a blank on both sides. Two searches that jump from blank to blank: no
        word is made an object of before it is suspicious.
        """
        begins, ends = self._searches
        for match in begins.finditer(text):
            start = match.start() + 1
            yield start, text[start : text.index(b" ", start)]
        for match in ends.finditer(text):
            start = text.rindex(b" ", 0, match.start()) + 1
            yield start, text[start : match.start()]

    @cached_property
    def _searches(self) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
        """For blanks before a suspicious beginning (or a whole word), and behind such an end."""
        begins = [*self._heads, *(word + b" " for word in self._whole)]
        ends = [word + b" " for word in self._tails]
        return (
            re.compile(b" (?=" + _letters(begins) + b")(?=" + _tree(begins) + b")"),
            re.compile(b" (?<=" + _letters(ends) + b")(?<=" + _tree(ends) + b")"),
        )

    def rules_of(self, word: bytes) -> frozenset[int]:
        """Positions of the rules with an anchor in ``word``; none for a harmless word."""
        heads, tails = self._heads.get(word[:_EDGE]), self._tails.get(word[-_EDGE:])
        whole = self._whole.get(word)
        if heads is None and tails is None and whole is None:
            return frozenset()
        found = set(whole or ())
        for anchor, positions in (heads or {}).items():
            if word.startswith(anchor):
                found |= positions
        for anchor, positions in (tails or {}).items():
            if word.endswith(anchor):
                found |= positions
        return frozenset(found)


Meaning = tuple[FailureClass, Trust]
_NCCL_WARNING = "nccl warn"
"""NCCL's own report of a broken network is about NCCL."""
_EXCEPTION = next(one.pattern for one in RULES if one.id == "exception-line")
"""The last line of a traceback: ``package.SomeError: message``."""


@cache
def rule_index() -> RuleIndex:
    """The index of all rules; built once per process."""
    return RuleIndex(RULES)


def meaning_of(line: str, positions: Iterable[int] | None = None) -> Meaning | None:
    """Class and trust of a line, None when it speaks of no failure.

    A specific class beats a plain Python exception; of several specific ones the most trusted
    holds, of equals the first in ``RULES``. ``positions`` limits the rules that are tried.
    """
    # The message behind `[rank3]: ` or srun's `3: `.
    message = _TASK_PREFIX.sub("", _RANK_PREFIX.sub("", line, count=1), count=1).lstrip()
    lowered = line.lower()
    chosen = RULES if positions is None else [RULES[position] for position in positions]
    found = [one for one in chosen if one.matches(message, lowered)]
    if _NCCL_WARNING in lowered:
        found = [one for one in found if one.kind is not FailureClass.NETWORK_ERROR]
    if not found or (_EXCEPTION and _EXCEPTION.search(message)):
        return _strongest([(one.kind, one.trust) for one in found])
    if HARMLESS["benign"].search(line) and not _ERROR.search(line):
        return None
    if HARMLESS["warning"].search(line):
        return _strongest(
            [
                (one.kind, one.trust if one.any_level else Trust.MENTION)
                for one in found
                if one.any_level or one.trust >= Trust.CAUSE
            ]
        )
    return _strongest([(one.kind, one.trust) for one in found])


def _strongest(found: Sequence[Meaning]) -> Meaning | None:
    specific = [one for one in found if one[0] is not FailureClass.PYTHON_EXCEPTION]
    return max(specific or found, key=lambda one: one[1], default=None)
