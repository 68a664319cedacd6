"""Which lines of a block deserve a closer look: decided on templates and words, at C speed.

A healthy log says the same few things with other numbers. One ``bytes.translate`` lowers the case,
deletes digits and blanks out punctuation; what is left of a line is its template. Of templates that
were never seen, the words that were never seen are compared with ``ANCHORS``; lines with a suspicious
word go to the rules. So the number of anchors costs nothing on a long log. Memory is bounded: what
is too long or too much is forgotten and judged again.
"""

from __future__ import annotations

_LETTERS = frozenset(range(0x61, 0x7B))
_DELETED = b"0123456789"


def _mapped(byte: int) -> int:
    lower = byte + 32 if 0x41 <= byte <= 0x5A else byte
    if byte in (0x0A, 0x0D):
        return 0x0A
    return lower if lower in _LETTERS else 0x20


_TABLE = bytes(_mapped(byte) for byte in range(256))
ANCHORS: tuple[bytes, ...] = tuple(
    b"""abort access accessdenied account address alloc allow already ambiguous ancdata argument assert
    authen bad broken bus busy cancel capable cert chunk client code command config conflict connect
    container contact core corrupt credential curl deadlock death denied diskfull diverged divis double
    driver duplicate edquot endpoint enospc enroot enviro eof errno error exceed exception execve
    exhaust exit expired explod facto factor fail fallen fatal file finite forbidden found free gateway
    gated getaddr gpus graph handle hang heap hsa hung hydra ibv illegal image import incomplete
    infiniband infinit installed insuffic interr invalid kerberos kernel key kill launch limit load
    locks login lost lustre machine malloc memory mismatch missing mlx mmap mmfs module mounted munge
    munmap nccl network node nodename nor nospace notfound nvidia nvlink nvml nvrm nvswitch omegaconf oom
    open option overload panic parameter partition peer permi pin please preempt process pyxis quota
    rccl read realloc refused remap remote rendezvous requested requeu required reset resolve
    resource respond restrict retries return route rpc scale segfault segmentation send service shared
    sig signal signature size smash socket space specif ssl stack stale status storage store stream
    stuck support symbol system task terminat time tls token traceback trunc unable unauth
    uncorrect undefined unexpected unhandled unknown unreach unrecog unsupported usage valid
    value violat walltime warn watchdog worker world write wrong xid""".split()
)
"""Parts of words; every literal of every rule holds one (a test sees to it)."""
EXACT = frozenset(b"nan inf ib ecc abi".split())
"""Whole words: parts of too many harmless ones."""
MAX_TEMPLATE = 512
MAX_WORD = 40
MAX_KNOWN = 20_000
PATIENCE = 50
"""Lines of one template that may match no rule before the template is taken for healthy."""
_DIGITS_MATTER = (b"exit", b"xid", b"errno", b"code", b"status", b"client error", b"signal", b"work")


def template_of(data: bytes) -> bytes:
    r"""Lower case, digits deleted, everything but letters a blank; ``\r`` ends lines like ``\n``."""
    return data.translate(_TABLE, _DELETED)


def is_suspicious(word: bytes) -> bool:
    """Whether a word of a template may belong to a failure."""
    return word in EXACT or any(anchor in word for anchor in ANCHORS)


class Prefilter:
    """Remembers which templates and words are harmless, and which are suspicious."""

    def __init__(self) -> None:
        self._harmless: set[bytes] = set()
        self._suspicious: dict[bytes, int] = {}
        self._plain_words: set[bytes] = set()
        self._hot_words: set[bytes] = set()

    def candidates(self, block: bytes) -> list[int]:
        """Indices of the lines of ``block`` to look at, in order."""
        templates = template_of(block).split(b"\n")
        fresh = set(templates) - self._harmless
        hot = {one for one in fresh if one in self._suspicious}
        hot |= self._judge(fresh - hot)
        if not hot:
            return []
        return [index for index, template in enumerate(templates) if template in hot]

    def disappoint(self, line: bytes) -> None:
        """No rule matched ``line``: after enough of these its template counts as healthy."""
        template = template_of(line)
        left = self._suspicious.get(template)
        if left is None or any(word in template for word in _DIGITS_MATTER):
            return
        if left > 1:
            self._suspicious[template] = left - 1
            return
        del self._suspicious[template]
        self._harmless.add(template)

    def _judge(self, fresh: set[bytes]) -> set[bytes]:
        """The suspicious ones among templates that were never seen."""
        if not fresh:
            return set()
        present = self._hot_among(set(b" ".join(fresh).split()))
        hot: set[bytes] = set()
        if present:
            hot = {one for one in fresh if not present.isdisjoint(one.split())}
        self._remember(fresh, hot)
        return hot

    def _hot_among(self, words: set[bytes]) -> set[bytes]:
        """Suspicious words among ``words``; each word is compared with the anchors once."""
        unseen = words - self._plain_words - self._hot_words
        found = {word for word in unseen if is_suspicious(word)}
        if len(self._plain_words) + len(unseen) > MAX_KNOWN:
            self._plain_words.clear()
        self._plain_words.update(
            word for word in unseen if word not in found and len(word) <= MAX_WORD
        )
        if len(self._hot_words) > MAX_KNOWN:
            self._hot_words.clear()
        self._hot_words.update(word for word in found if len(word) <= MAX_WORD)
        return found | (words & self._hot_words)

    def _remember(self, fresh: set[bytes], hot: set[bytes]) -> None:
        if len(self._harmless) + len(fresh) > MAX_KNOWN:
            self._harmless.clear()
        if len(self._suspicious) + len(hot) > MAX_KNOWN:
            self._suspicious.clear()
        self._harmless.update(one for one in fresh if len(one) <= MAX_TEMPLATE and one not in hot)
        self._suspicious.update((one, PATIENCE) for one in hot if len(one) <= MAX_TEMPLATE)
