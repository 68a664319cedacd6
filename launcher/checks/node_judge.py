"""What a node's own facts mean, each check by itself. Pure.

Every check answers ok, warn, fail or unknown: unknown wherever its facts could not be had.

What nodes mean beside each other: versions against the majority. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from submitrain.launcher.checks.finding import Finding, fail, ok, unknown, warn
from submitrain.launcher.checks.node_facts import UNLIMITED, NodeFacts, Software, Unknown
from submitrain.launcher.checks.node_gpu import GRAVE_XIDS

GIB = 2**30
MIB = 2**20
LEAST_DISK_BYTES = GIB
"""Where the size of a checkpoint is not known, less than this is worth a warning."""
LEAST_INODES = 1000
LEAST_SHM_BYTES = 64 * MIB
"""Docker's default: loader processes and NCCL have failed with it."""
GOOD_SHM_BYTES = GIB
GOOD_MEMLOCK_BYTES = 64 * GIB
FILES_PER_RANK = 8
"""Sockets to each peer in every process group, and files; on top of what a process needs anyway."""
FILES_ANYWAY = 256
CLOCK_WARN_S = 2.0
CLOCK_FAIL_S = 60.0
"""munge refuses messages after 300 s; times in event files are of no use long before."""


@dataclass(frozen=True)
class Expected:
    """What the run needs of a node."""

    asker: str
    """The first node, which asks the others."""
    world_size: int
    gpus_per_node: int = 0
    checkpoint_bytes: int | None = None
    recorded: Mapping[str, str] = field(default_factory=dict)
    """Package versions where the run was launched."""


_NO_GPUS = "no GPUs asked for"
Check = Callable[[NodeFacts, Expected], Finding]


def shared_folder(facts: NodeFacts, expected: Expected) -> Finding:
    """Written on one node and read on another, both ways."""
    check, found = "node.folder", facts.shared
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    where = f"{found.path} ({found.fs_type or 'unknown file system'})"
    if found.write_error:
        remedy = "free space or mend the mount there; runs_dir must be writable on every node"
        return fail(check, f"cannot write to {where}: {found.write_error}", remedy)
    shared = "put runs_dir on a file system that all nodes share"
    if found.read_error:
        told = f"{where} does not show what {expected.asker} wrote: {found.read_error}"
        return fail(check, told, shared)
    if found.seen is None:
        return unknown(check, f"{expected.asker} did not look for what was written here")
    if not found.seen:
        return fail(check, f"{expected.asker} does not see what was written to {where}", shared)
    return ok(check, f"{where}, 1 MiB flushed in {found.write_s * 1000:.0f} ms, seen both ways")


def disk(facts: NodeFacts, expected: Expected) -> Finding:
    """Room for two checkpoints: the last one goes only when the next one is there."""
    check, found = "node.disk", facts.shared
    if isinstance(found, Unknown) or found.free_bytes is None:
        return unknown(check, found.why if isinstance(found, Unknown) else "statvfs failed")
    if found.free_inodes is not None and found.free_inodes < LEAST_INODES:
        remedy = "remove files, or have the quota of files raised"
        return warn(check, f"{found.free_inodes} free inodes in {found.path}", remedy)
    needed = 2 * expected.checkpoint_bytes if expected.checkpoint_bytes else LEAST_DISK_BYTES
    told = f"{found.free_bytes / GIB:.1f} GiB free in {found.path}"
    if found.free_bytes < needed:
        what = "two checkpoints need" if expected.checkpoint_bytes else "worth having"
        remedy = "free space, or keep fewer checkpoints (checkpoint.keep_last_n_checkpoints)"
        return warn(check, f"{told}; {what} {needed / GIB:.1f} GiB", remedy)
    return ok(check, told)


def shared_memory(facts: NodeFacts, expected: Expected) -> Finding:
    """``/dev/shm``: loader processes hand over batches in it, NCCL copies through it."""
    check, found = "node.shm", facts.shm
    remedy = "enlarge it: mount -o remount,size=50% /dev/shm; in containers --shm-size or a mount"
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    told = f"{found.free_bytes / GIB:.2f} of {found.total_bytes / GIB:.2f} GiB free"
    if found.write_error:
        return fail(check, f"cannot be written: {found.write_error} ({told})", remedy)
    if found.free_bytes < LEAST_SHM_BYTES:
        return fail(check, f"{told}, {LEAST_SHM_BYTES // MIB} MiB are the least", remedy)
    if found.free_bytes < GOOD_SHM_BYTES:
        return warn(check, f"{told}: loader processes may run out of it", remedy)
    return ok(check, told)


def locked_memory(facts: NodeFacts, expected: Expected) -> Finding:
    """RDMA registers memory, which counts as locked (ibv_reg_mr(3)); nothing else here does."""
    check, found = "node.memlock", facts.limits
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    limit = found.memlock_bytes
    told = "unlimited" if limit == UNLIMITED else f"{limit / MIB:.0f} MiB"
    if not found.rdma:
        return ok(check, f"{told}; no RDMA device here")
    if limit == UNLIMITED or limit >= GOOD_MEMLOCK_BYTES:
        return ok(check, told)
    return fail(
        check,
        f"{told}, and RDMA registers its buffers: NCCL falls back or fails",
        "LimitMEMLOCK=infinity for slurmd, PropagateResourceLimitsExcept=MEMLOCK in slurm.conf",
    )


def open_files(facts: NodeFacts, expected: Expected) -> Finding:
    """A rank holds sockets to every peer."""
    check, found = "node.open_files", facts.limits
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    needed = FILES_ANYWAY + FILES_PER_RANK * expected.world_size
    if found.nofile == UNLIMITED or found.nofile >= needed:
        return ok(check, "unlimited" if found.nofile == UNLIMITED else str(found.nofile))
    return fail(
        check,
        f"a task may open {found.nofile} files, {expected.world_size} ranks need about {needed}",
        "raise it: LimitNOFILE of slurmd, or `ulimit -n` in slurm.setup",
    )


def clock(facts: NodeFacts, expected: Expected) -> Finding:
    """Times of events are compared between nodes."""
    check, ahead = "node.clock", facts.clock
    if isinstance(ahead, Unknown):
        return unknown(check, ahead.why)
    told = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} {expected.asker}"
    remedy = "have its time service (chrony, ntpd) looked at"
    if abs(ahead) > CLOCK_FAIL_S:
        return fail(check, told, remedy)
    if abs(ahead) > CLOCK_WARN_S:
        return warn(check, told, remedy)
    return ok(check, f"within {CLOCK_WARN_S:.0f} s of {expected.asker}")


def gpu_count(facts: NodeFacts, expected: Expected) -> Finding:
    """As many GPUs as were asked for."""
    check, found = "gpu.count", facts.gpus
    if not expected.gpus_per_node:
        return ok(check, _NO_GPUS)
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    told = f"{len(found)} of {expected.gpus_per_node} GPUs"
    if len(found) < expected.gpus_per_node:
        return fail(check, f"nvidia-smi shows {told}", "report the node: a GPU is gone")
    return ok(check, f"{told}: {found[0].name}")


def gpu_memory(facts: NodeFacts, expected: Expected) -> Finding:
    """Uncorrected memory errors, and rows that cannot be remapped any more."""
    check, found = "gpu.memory", facts.gpus
    if not expected.gpus_per_node:
        return ok(check, _NO_GPUS)
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    remedy = "report the GPU; it needs a reset, or to be replaced"
    for gpu in found:
        if gpu.remap_failed:
            return fail(check, f"GPU {gpu.index}: remapping a row of memory failed", remedy)
        if gpu.uncorrected:
            told = f"GPU {gpu.index}: {gpu.uncorrected} uncorrected errors since the driver started"
            return fail(check, told, remedy)
    if found and all(gpu.uncorrected is None for gpu in found):
        return unknown(check, f"{found[0].name} counts no errors (ECC is off, or it has none)")
    return ok(check, "no uncorrected error")


def xid(facts: NodeFacts, expected: Expected) -> Finding:
    """Errors of the hardware in the kernel's log of the last 24 hours."""
    check, found = "gpu.xid", facts.xids
    if not expected.gpus_per_node:
        return ok(check, _NO_GPUS)
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    grave = [one for one in found if one.code in GRAVE_XIDS]
    if grave:
        told = f"Xid {grave[-1].code} ({GRAVE_XIDS[grave[-1].code]}): {grave[-1].line}"
        return fail(check, told, "report the GPU; the node needs a reset at least")
    return ok(check, f"no hardware error in the kernel's log ({len(found)} of programs)")


def gpu_links(facts: NodeFacts, expected: Expected) -> Finding:
    """NVLinks that are down, and PCIe slots with fewer lanes than they have.

    The generation of PCIe is not judged: it goes down while a GPU is idle.
    """
    check, links, gpus = "gpu.links", facts.nvlinks, facts.gpus
    if not expected.gpus_per_node:
        return ok(check, _NO_GPUS)
    if isinstance(gpus, Unknown) or isinstance(links, Unknown):
        why = gpus if isinstance(gpus, Unknown) else links
        return unknown(check, why.why if isinstance(why, Unknown) else "")
    down = [f"GPU {one.gpu} link {one.link}" for one in links if not one.active]
    if down and len(down) < len(links):
        told = f"{len(down)} of {len(links)} NVLinks are inactive ({', '.join(down[:4])})"
        return fail(check, told, "report the node: traffic between its GPUs goes another way")
    narrow = [
        f"GPU {one.index} x{one.pcie_width} of x{one.pcie_width_max}"
        for one in gpus
        if one.pcie_width and one.pcie_width_max and one.pcie_width < one.pcie_width_max
    ]
    if narrow:
        return warn(check, f"PCIe is narrow: {', '.join(narrow)}", "have the GPU reseated")
    return ok(check, f"{len(links)} NVLinks active" if links else "no NVLink; PCIe at full width")


def fabric(facts: NodeFacts, expected: Expected) -> Finding:
    """At least one InfiniBand or RoCE port is up, where there are any."""
    check, found = "node.fabric", facts.ports
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    if not found:
        return ok(check, "no InfiniBand or RoCE device here")
    active = [one for one in found if one.state == "ACTIVE"]
    told = ", ".join(f"{one.name} {one.state}" for one in found[:8])
    if not active:
        return fail(check, told, "report the node: its ports are down (ibstat, cables, switch)")
    return ok(check, f"{len(active)} of {len(found)} ports are up, {active[0].rate}")


def name(facts: NodeFacts, expected: Expected) -> Finding:
    """The host's own name has an address on it: gloo and user code look it up."""
    check, found = "node.name", facts.names
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    if found.own_error:
        return fail(
            check,
            f"its own name {found.host} does not resolve there: {found.own_error}",
            f"a line for {found.host} in its /etc/hosts, or in DNS",
        )
    return ok(check, f"{found.host} resolves")


def reach(facts: NodeFacts, expected: Expected) -> Finding:
    """Where rank 0 will listen can be reached: by a name, or by an address."""
    check, found = "node.reach", facts.names
    if isinstance(found, Unknown):
        return unknown(check, found.why)
    if not found.reached and not found.missed:
        return unknown(check, f"{expected.asker} did not listen")
    tried = "; ".join(f"{host}: {why}" for host, why in found.missed.items())
    if not found.reached:
        return fail(
            check,
            f"{expected.asker} answers at none of its names ({tried})",
            "look for a firewall between the nodes; distributed.interface names the network",
        )
    return ok(check, f"by {found.reached}" + (f"; not by {tried}" if tried else ""))


CHECKS: tuple[Check, ...] = (
    shared_folder,
    disk,
    shared_memory,
    locked_memory,
    open_files,
    clock,
    gpu_count,
    gpu_memory,
    xid,
    gpu_links,
    fabric,
    name,
    reach,
)
INTRINSIC = frozenset({"node.answers", "gpu.count", "gpu.memory", "gpu.xid", "gpu.links"})
"""Checks that speak against a node even where they fail on all nodes.

A limit or a folder that is wrong everywhere is the site's or the user's: leaving nodes for it would
only send the job back into the queue, to meet the same again.
"""


def judge_node(facts: NodeFacts, expected: Expected) -> list[Finding]:
    """All checks of one node."""
    return [check(facts, expected) for check in CHECKS]


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
