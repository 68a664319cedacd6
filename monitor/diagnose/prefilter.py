"""Which lines of a block deserve a closer look: decided on templates and words, at C speed.

A healthy log says the same few things with other numbers. One ``bytes.translate`` lowers the case,
deletes digits and blanks out punctuation; what is left of a line is its template. Templates that
were never seen are searched for words that the index of rules suspects; lines with such a word go
to the rules it leads to. So the number of rules costs nothing on a long log.
Memory is bounded: what is too long or too much is forgotten and judged again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monitor.diagnose.index import RuleIndex

MAX_TEMPLATE = 512
MAX_TEMPLATES = 20_000
MAX_WORD = 40
MAX_WORDS = 20_000
PATIENCE = 50
"""Lines of one template that may match no rule before the template is taken for healthy."""
PATIENCE_WITH_CODES = 2000
"""The same for templates whose deleted digits may be an exit code or the like."""
_CODES = (b"exit", b"xid", b"errno", b"code", b"status", b"client error", b"signal")
_LETTERS = frozenset(range(0x61, 0x7B))
_DELETED = b"0123456789"
_BETWEEN = b" \n "


def _mapped(byte: int) -> int:
    lower = byte + 32 if 0x41 <= byte <= 0x5A else byte
    if byte in (0x0A, 0x0D):
        return 0x0A
    return lower if lower in _LETTERS else 0x20


_TABLE = bytes(_mapped(byte) for byte in range(256))


def template_of(data: bytes) -> bytes:
    r"""Lower case, digits deleted, everything but letters a blank; ``\r`` ends lines too."""
    return data.translate(_TABLE, _DELETED)


def _patience_with(template: bytes) -> int:
    return PATIENCE_WITH_CODES if any(word in template for word in _CODES) else PATIENCE


@dataclass
class Suspect:
    """A template whose lines are looked at, the rules for them, and the patience left."""

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
        """Indices of the lines of ``block`` to look at, in order, with the rules for each."""
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

    def disappoint(self, line: bytes, suspect: Suspect) -> None:
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
            lines[line]: Suspect(sorted(rules), _patience_with(lines[line]))
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
