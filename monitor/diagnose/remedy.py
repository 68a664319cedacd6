"""What to do about each class of failure, one sentence that says what happened, and the straggler.

The straggler of a hung collective is the rank that completed least, or said nothing; source of the
wording: torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from submitrain.monitor.diagnose.model import FailureClass, Finding, Remedy, Trust
from submitrain.monitor.diagnose.model import FailureClass as F

_COMPLETED = re.compile(r"last completed (?:nccl )?work:? (-?\d+)", re.IGNORECASE)
_STUCK_AT = re.compile(r"SeqNum=(\d+)")
_OPERATION = re.compile(r"OpType=(\w+)")
MAX_LISTED = 8


@dataclass(frozen=True)
class Straggler:
    """What the watchdogs' numbers say; ``rank`` None when they do not single one out."""

    rank: int | None
    explanation: str
    operation: str = ""


def find_straggler(findings: Sequence[Finding]) -> Straggler | None:
    """The rank with the lowest sequence number, else those that said nothing at all.

    None while fewer than two ranks have spoken: there is nothing to compare.
    """
    hung = [one for one in findings if one.kind is FailureClass.NCCL_TIMEOUT]
    progress: dict[int, int] = {}
    operation = ""
    for one in hung:
        completed, stuck = _COMPLETED.search(one.text), _STUCK_AT.search(one.text)
        number = int(completed[1]) if completed else int(stuck[1]) - 1 if stuck else None
        if match := _OPERATION.search(one.text):
            operation = operation or match[1]
        if one.rank is not None and number is not None:
            progress[one.rank] = min(number, progress.get(one.rank, number))
    if len(progress) < 2:
        return None
    low, high = min(progress.values()), max(progress.values())
    behind = sorted(rank for rank, number in progress.items() if number == low)
    if low < high:
        text = f"rank {_listed(behind)} stopped at collective {low}, others reached {high}"
        return Straggler(behind[0] if len(behind) == 1 else None, text, operation)
    silent = sorted(set(range(max(progress) + 1)) - progress.keys())
    if silent:
        text = f"all that spoke stopped at collective {low}; rank {_listed(silent)} said nothing"
        return Straggler(silent[0] if len(silent) == 1 else None, text, operation)
    return Straggler(None, f"every rank that spoke stopped at collective {low}", operation)


def _listed(ranks: Sequence[int]) -> str:
    text = ", ".join(str(rank) for rank in ranks[:MAX_LISTED])
    return text + (f" and {len(ranks) - MAX_LISTED} more" if len(ranks) > MAX_LISTED else "")


ADVICE = {
    F.CUDA_OOM: (
        "the GPU's memory did not suffice",
        "fix",
        "lower the batch size or sequence length, turn on activation checkpointing, or shard more",
    ),
    F.HOST_OOM: (
        "the host's memory, or the job's limit of it, did not suffice",
        "fix",
        "ask for more memory (slurm.mem), use fewer loader workers, or load data lazily",
    ),
    F.NCCL_TIMEOUT: (
        "a collective did not complete in time",
        "retry",
        "look at the rank that is behind or silent (stack dump, its log); restart, and "
        "exclude its node when it happens there again",
    ),
    F.NCCL_ERROR: (
        "NCCL failed",
        "retry",
        "restart; run once with NCCL_DEBUG=INFO; exclude the node when it fails there again",
    ),
    F.NODE_FAIL: (
        "a node was lost",
        "exclude_node",
        "requeue without the lost node and tell the administrators",
    ),
    F.PREEMPTED: (
        "the job was ended or requeued from outside",
        "resubmit",
        "requeue: training goes on from the newest checkpoint",
    ),
    F.TIME_LIMIT: (
        "the job reached its time limit",
        "resubmit",
        "resume from the newest checkpoint, or ask for more time",
    ),
    F.PYTHON_EXCEPTION: (
        "the program raised an exception",
        "fix",
        "mend the program at the named line; a retry fails the same way",
    ),
    F.NAN_LOSS: (
        "loss or gradients are not finite",
        "fix",
        "go back to a checkpoint before it, then lower the learning rate, clip, use bf16, or "
        "skip the data window",
    ),
    F.DISK_FULL: (
        "no space left, or a quota is exceeded",
        "fix",
        "free space or raise the quota where checkpoints and caches are written",
    ),
    F.SEGFAULT: (
        "a process crashed in native code",
        "retry",
        "restart once; if it crashes again, suspect versions of torch, CUDA and extensions",
    ),
    F.GPU_XID: (
        "a GPU or its driver failed",
        "exclude_node",
        "exclude the node, restart elsewhere, and report the GPU",
    ),
    F.FILESYSTEM: (
        "a file system failed or refused access",
        "retry",
        "check the mount and the permissions on that node, then restart from the checkpoint",
    ),
    F.IMPORT_ERROR: (
        "a module or shared library is missing or does not fit",
        "fix",
        "install what is missing, in versions that fit, where the ranks run",
    ),
    F.CONFIG_ERROR: (
        "arguments, configuration or the resource request are wrong",
        "fix",
        "correct the named argument, key or resource request and submit again",
    ),
    F.CONTAINER_ERROR: (
        "the ranks' container did not start",
        "fix",
        "make image, mount sources (slurm.extra_mounts) and runtime (slurm.container_runtime)"
        " available under these names on every node, or leave the node out (slurm.exclude)",
    ),
    F.AUTH_ERROR: (
        "a credential is missing, wrong or lacks the right",
        "fix",
        "set a valid token where the ranks run (HF_TOKEN, WANDB_API_KEY) and request access",
    ),
    F.NETWORK_ERROR: (
        "a host could not be reached or a connection broke",
        "retry",
        "check address, port, interface and proxy; download beforehand where nodes are offline",
    ),
    F.DATALOADER_WORKER: (
        "a worker of the data loader failed",
        "fix",
        "look at the worker's own error; use fewer workers, or more memory and /dev/shm",
    ),
    F.BENIGN: (
        "no sign of a failure",
        "nothing",
        "nothing to do",
    ),
}
"""By class: what happened, what kind of step helps, and which."""
_PROBABLE_KILL = "a process was killed, probably because the host's memory did not suffice"
_PROBABLE_END = "the job was ended from outside: cancelled, preempted, or stopped by its launcher"
_HAS_PREFIX = re.compile(r"^\s*(?:\[?rank[^\]]*\]:?|\d+:)\s*", re.IGNORECASE)


def remedy_for(root: Finding) -> Remedy:
    """What to do, naming the node where it is to be excluded."""
    _, step, text = ADVICE[root.kind]
    if root.node and step == "exclude_node":
        text = f"{text} (--exclude={root.node})"
    return Remedy(step, text)


def summary_of(root: Finding, straggler: Straggler | None) -> str:
    """One sentence: what happened, on which rank and node, in which words."""
    what, _, _ = ADVICE[root.kind]
    if root.trust is Trust.EXIT and root.kind is F.HOST_OOM:
        what = _PROBABLE_KILL
    if root.trust is Trust.EXIT and root.kind is F.PREEMPTED:
        what = _PROBABLE_END
    if straggler and straggler.operation:
        what = f"{what} ({straggler.operation})"
    where = f" on rank {root.rank}" if root.rank is not None else ""
    where += f" ({root.node})" if root.node and where else f" on {root.node}" if root.node else ""
    said = _HAS_PREFIX.sub("", root.text)
    return f"{what}{where}: {said}" if said else f"{what}{where}"
