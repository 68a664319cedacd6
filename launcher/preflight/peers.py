"""What nodes mean beside each other: versions against the majority. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launcher.assess.finding import Finding, fail, ok, unknown, warn
from launcher.preflight.facts import NodeFacts, Software, Unknown

CHECK = "node.software"
_MOST = 4
"""Differences that are named."""
_GRAVE = ("python", "code", "packages")


def software(
    facts: Mapping[str, NodeFacts], recorded: Mapping[str, str] | None = None
) -> dict[str, Finding]:
    """Versions of every node against those of most nodes.

    Where two versions are equally frequent, ``recorded`` (those of the launch) decide for packages;
    where nothing decides, nobody can tell who is wrong, and all are warned.
    """
    if len(facts) < 2:
        return {node: ok(CHECK, "no other node to compare with") for node in facts}
    known = {
        node: one.software for node, one in facts.items() if not isinstance(one.software, Unknown)
    }
    found = {
        node: unknown(CHECK, one.software.why)
        for node, one in facts.items()
        if isinstance(one.software, Unknown)
    }
    if len(known) < 2:
        why = "no other node tells its versions"
        return found | {node: unknown(CHECK, why) for node in known}
    usual, open_ = _usual({node: _flat(one) for node, one in known.items()}, recorded or {})
    return found | {node: _compare(_flat(one), usual, open_) for node, one in known.items()}


def _flat(one: Software) -> dict[str, str]:
    """Every version by its name; those of packages under ``packages/``."""
    flat = {"python": one.python, "code": one.code, "commit": one.commit}
    flat |= {"driver": one.driver, "kernel": one.kernel}
    return flat | {f"packages/{name}": number for name, number in one.packages.items()}


def _usual(
    nodes: Mapping[str, Mapping[str, str]], recorded: Mapping[str, str]
) -> tuple[dict[str, str], frozenset[str]]:
    """The version that most nodes have of everything, and what is undecided."""
    usual: dict[str, str] = {}
    undecided = set()
    for name in sorted({name for flat in nodes.values() for name in flat}):
        counts = Counter(flat.get(name, "") for flat in nodes.values()).most_common()
        usual[name] = counts[0][0]
        if len(counts) > 1 and counts[0][1] == counts[1][1]:
            launched = recorded.get(name.removeprefix("packages/"))
            if launched in [version for version, _ in counts] and launched is not None:
                usual[name] = launched
            else:
                undecided.add(name)
    return usual, frozenset(undecided)


def _compare(flat: Mapping[str, str], usual: Mapping[str, str], open_: frozenset[str]) -> Finding:
    other = [name for name in usual if flat.get(name, "") != usual[name] and name not in open_]
    grave = [name for name in other if name.partition("/")[0] in _GRAVE]
    if grave:
        told = "; ".join(
            f"{_plain(name)} is {flat.get(name) or 'missing'}, {usual[name] or 'absent'} elsewhere"
            for name in grave[:_MOST]
        )
        more = f"; {len(grave) - _MOST} more differ" if len(grave) > _MOST else ""
        remedy = "use one environment for all nodes: on a shared file system, or an image"
        return fail(CHECK, told + more, remedy)
    if open_:
        told = ", ".join(f"{_plain(name)} {flat.get(name) or 'missing'}" for name in sorted(open_))
        return warn(
            CHECK,
            f"nodes differ, and nobody has a majority: {told}",
            "use one environment for all nodes",
        )
    if other:
        told = ", ".join(
            f"{_plain(name)} {flat.get(name) or 'none'} ({usual[name] or 'none'} elsewhere)"
            for name in other
        )
        return warn(CHECK, told, "tell the administrators: nodes of a partition should be alike")
    return ok(CHECK, f"the same on all nodes ({len(flat)} versions)")


def _plain(name: str) -> str:
    return "our code" if name == "code" else name.removeprefix("packages/")
