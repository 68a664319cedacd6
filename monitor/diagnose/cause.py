"""The root cause among the findings of all logs: the earliest fatal one, victims demoted. Pure.

Order of trust: scheduler state; kernel and slurmstepd; a rank's own record; log rules. Within one
log the order of lines is the order of time; between logs only moments of the same clock compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from submitrain.monitor.diagnose.model import Diagnosis, FailureClass, Finding, Trust
from submitrain.monitor.diagnose.remedy import Straggler, find_straggler, remedy_for, summary_of

F = FailureClass
MAX_EVIDENCE = 5
MAX_VICTIMS = 8
NEAR_LINES = 200
"""An exception so few lines before the scheduler's end of a job may be why the job hung."""

_ENDS = frozenset({F.TIME_LIMIT, F.PREEMPTED, F.NODE_FAIL})
_CONSEQUENCES = frozenset({F.NCCL_ERROR, F.NCCL_TIMEOUT, F.NETWORK_ERROR, *_ENDS})
"""What may follow from another rank's exception."""
_EXPLAINS: dict[FailureClass, frozenset[FailureClass]] = {
    F.HOST_OOM: frozenset(
        {F.DATALOADER_WORKER, F.NCCL_ERROR, F.NETWORK_ERROR, F.PYTHON_EXCEPTION, F.SEGFAULT}
    ),
    F.GPU_XID: frozenset({F.NCCL_ERROR, F.NETWORK_ERROR, F.PYTHON_EXCEPTION, F.SEGFAULT}),
    F.NODE_FAIL: frozenset({F.NCCL_ERROR, F.NETWORK_ERROR, F.PREEMPTED, F.FILESYSTEM}),
    F.FILESYSTEM: frozenset({F.NETWORK_ERROR, F.PYTHON_EXCEPTION, F.NCCL_ERROR}),
    F.TIME_LIMIT: frozenset({F.PREEMPTED}),
}
"""What the word of the kernel or of the scheduler explains, whatever was printed first."""
_EXIT_ORDER = (F.HOST_OOM, F.SEGFAULT, F.PYTHON_EXCEPTION, F.PREEMPTED)
_VICTIM_ORDER = (F.NCCL_TIMEOUT, F.NCCL_ERROR, F.NETWORK_ERROR, F.GPU_XID)
_CONFIDENCE = {
    Trust.SCHEDULER: 0.97,
    Trust.KERNEL: 0.95,
    Trust.RECORD: 0.93,
    Trust.CAUSE: 0.9,
    Trust.EXCEPTION: 0.75,
    Trust.VICTIM: 0.6,
    Trust.EXIT: 0.45,
    Trust.MENTION: 0.3,
}


def diagnose(findings: Sequence[Finding], notes: Sequence[str] = ()) -> Diagnosis:
    """The diagnosis from everything that was found; no fatal finding means ``benign``."""
    ordered = sorted(findings, key=lambda one: (one.source, one.offset))
    fatal = [one for one in ordered if not one.survived and one.trust > Trust.MENTION]
    root = _root(fatal)
    if root is None:
        return _benign(ordered, notes)
    if root.trust is Trust.EXIT and root.kind is F.PYTHON_EXCEPTION:
        root = next((one for one in ordered if one.trust is Trust.MENTION), root)
    straggler = find_straggler(ordered) if root.kind is F.NCCL_TIMEOUT else None
    if straggler is not None:
        of_rank = (one for one in ordered if one.kind is root.kind and one.rank == straggler.rank)
        root = next(of_rank, root)
    root = _located(root, ordered, straggler)
    more = [one for one in ordered if one.kind is root.kind and not one.survived]
    more = [one for one in more if (one.source, one.offset) != (root.source, root.offset)]
    others = [one for one in ordered if one.kind is not root.kind]
    return Diagnosis(
        kind=root.kind,
        confidence=_confidence(root, fatal),
        summary=summary_of(root, straggler),
        remedy=remedy_for(root),
        rank=root.rank,
        node=root.node,
        evidence=(root, *more[: MAX_EVIDENCE - 1]),
        victims=_first_of_each(others)[:MAX_VICTIMS],
        notes=(*notes, *((straggler.explanation,) if straggler else ())),
    )


def _root(fatal: Sequence[Finding]) -> Finding | None:
    strong = [one for one in fatal if one.trust >= Trust.CAUSE]
    plain = [one for one in fatal if one.trust is Trust.EXCEPTION]
    root = _earliest(strong)
    if root is None:
        return _earliest(plain) or _weak_root(fatal)
    # The kernel's or scheduler's word, where it explains the root or fits no order of time.
    trusted = [one for one in strong if one.trust >= Trust.KERNEL and one.kind is not root.kind]
    for one in sorted(trusted, key=lambda one: -one.trust):
        late = one.kind in _ENDS and root.trust < Trust.KERNEL and not _near_before(root, one)
        if late or root.kind in _EXPLAINS.get(one.kind, ()):
            root = one
            break
    if root.kind in _CONSEQUENCES and root.trust < Trust.SCHEDULER:
        before = [one for one in (*strong, *plain) if _led_to(one, root)]
        root = _earliest(before) or root
    return root


def _led_to(one: Finding, end: Finding) -> bool:
    """Whether ``one`` precedes ``end`` so closely that ``end`` is its consequence."""
    if one is end or one.kind is end.kind or one.kind in _EXPLAINS.get(end.kind, ()):
        return False
    if one.kind in _CONSEQUENCES and one.trust < Trust.KERNEL:
        return False
    if end.trust >= Trust.KERNEL:
        return _near_before(one, end)
    return _precedes(one, end) is not False


def _near_before(one: Finding, end: Finding) -> bool:
    if one.source == end.source:
        return one.offset < end.offset and end.line - one.line <= NEAR_LINES
    return _precedes(one, end) is True


def _precedes(one: Finding, other: Finding) -> bool | None:
    """Whether ``one`` came first; None where nobody can tell."""
    if one.source == other.source:
        return one.offset < other.offset
    if one.moment and other.moment and one.moment.clock == other.moment.clock:
        return one.moment.seconds <= other.moment.seconds
    return None


def _earliest(findings: Sequence[Finding]) -> Finding | None:
    """The first in time; what cannot be compared goes by trust, then by the order of files."""
    best: Finding | None = None
    for one in findings:
        known = _precedes(one, best) if best is not None else True
        if best is None or known or (known is None and one.trust > best.trust):
            best = one
    return best


def _weak_root(fatal: Sequence[Finding]) -> Finding | None:
    """No rank says why: a hung collective, a dead peer, or how processes ended."""
    victims = [one for one in fatal if one.trust is Trust.VICTIM]
    exits = [one for one in fatal if one.trust is Trust.EXIT]
    hung = _earliest([one for one in victims if one.kind is F.NCCL_TIMEOUT])
    killed = _earliest([one for one in exits if one.kind in (F.HOST_OOM, F.SEGFAULT)])
    if hung or killed:
        return hung or killed
    for findings, order in ((victims, _VICTIM_ORDER), (exits, _EXIT_ORDER)):
        for kind in order:
            of_kind = [one for one in findings if one.kind is kind]
            if of_kind:
                return next((one for one in of_kind if one.first), None) or _earliest(of_kind)
        if findings:
            return _earliest(findings)
    return None


def _located(root: Finding, findings: Sequence[Finding], straggler: Straggler | None) -> Finding:
    """``root`` with rank and node, where other lines of the same rank or class tell them."""
    rank = straggler.rank if straggler else root.rank
    same = [one for one in findings if one.kind is root.kind]
    if rank is None and straggler is None:
        ranks = {one.rank for one in same if one.rank is not None}
        rank = ranks.pop() if len(ranks) == 1 else None
    node = root.node if rank == root.rank else None
    if node is None:
        near = [one.node for one in findings if one.node and rank is not None and one.rank == rank]
        nodes = {one.node for one in same if one.node}
        node = near[0] if near else nodes.pop() if len(nodes) == 1 else None
    return replace(root, rank=rank, node=node)


def _first_of_each(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    seen: dict[FailureClass, Finding] = {}
    for one in findings:
        seen.setdefault(one.kind, one)
    return tuple(seen.values())


def _confidence(root: Finding, fatal: Sequence[Finding]) -> float:
    """Trust in the deciding line, less where another specific reason competes with it."""
    rivals = {
        one.kind
        for one in fatal
        if one.trust >= Trust.CAUSE
        and one.kind is not root.kind
        and one.kind not in _CONSEQUENCES | _EXPLAINS.get(root.kind, frozenset())
    }
    backed = sum(one.kind is root.kind for one in fatal) > 1
    base = _CONFIDENCE[root.trust] + (0.03 if backed else 0.0)
    return max(0.2, min(0.99, base - 0.1 * len(rivals)))


def _benign(findings: Sequence[Finding], notes: Sequence[str]) -> Diagnosis:
    survived = _first_of_each([one for one in findings if one.survived])
    said = "; survived: " + ", ".join(str(one.kind) for one in survived) if survived else ""
    return Diagnosis(
        kind=F.BENIGN,
        confidence=0.7 if findings else 0.9,
        summary=f"no sign of a failure{said}",
        remedy=remedy_for(Finding(F.BENIGN, Trust.MENTION, "")),
        victims=_first_of_each(findings)[:MAX_VICTIMS],
        notes=tuple(notes),
    )
