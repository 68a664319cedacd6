"""Finds the few rules that a word can belong to, so that most rules never see a line.

Every literal of a rule is represented by the longest run of letters in it, its anchor: ``no space
left`` by ``space``. An anchor must be the beginning or the end of a word (``OutOfMemoryError`` ends
with ``error``), one of up to three letters the whole of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from monitor.diagnose.rule import Rule

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
    if b"" in branches:  # a shorter word ends here, and whatever goes on fits it, too
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
