"""Finds the few rules that a word can belong to, so that most rules never see a line.

Every literal of a rule is represented by the longest run of letters in it, its anchor: ``no space
left`` by ``space``. An anchor must be the beginning or the end of a word (``OutOfMemoryError`` ends
with ``error``), one of up to three letters the whole of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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

    def suspicious(self, words: Iterable[bytes]) -> list[bytes]:
        """Those of many words that may lead to a rule; the quick half of ``rules_of``."""
        heads, tails, whole = self._heads, self._tails, self._whole
        return [
            word
            for word in words
            if word[:_EDGE] in heads or word[-_EDGE:] in tails or word in whole
        ]

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
