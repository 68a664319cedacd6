"""What to do about each class of failure, and one sentence that says what happened. Pure."""

from __future__ import annotations

import re

from monitor.diagnose.collective import Straggler
from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Finding, Remedy, Trust

_WHAT = {
    F.CUDA_OOM: "the GPU's memory did not suffice",
    F.HOST_OOM: "the host's memory, or the job's limit of it, did not suffice",
    F.NCCL_TIMEOUT: "a collective did not complete in time",
    F.NCCL_ERROR: "NCCL failed",
    F.NODE_FAIL: "a node was lost",
    F.PREEMPTED: "the job was ended or requeued from outside",
    F.TIME_LIMIT: "the job reached its time limit",
    F.PYTHON_EXCEPTION: "the program raised an exception",
    F.NAN_LOSS: "loss or gradients are not finite",
    F.DISK_FULL: "no space left, or a quota is exceeded",
    F.SEGFAULT: "a process crashed in native code",
    F.GPU_XID: "a GPU or its driver failed",
    F.FILESYSTEM: "a file system failed or refused access",
    F.IMPORT_ERROR: "a module or shared library is missing or does not fit",
    F.CONFIG_ERROR: "arguments, configuration or the resource request are wrong",
    F.CONTAINER_ERROR: "the ranks' container did not start",
    F.AUTH_ERROR: "a credential is missing, wrong or lacks the right",
    F.NETWORK_ERROR: "a host could not be reached or a connection broke",
    F.DATALOADER_WORKER: "a worker of the data loader failed",
    F.BENIGN: "no sign of a failure",
}
_DO = {
    F.CUDA_OOM: (
        "fix",
        "lower the batch size or sequence length, turn on activation checkpointing, or shard more",
    ),
    F.HOST_OOM: (
        "fix",
        "ask for more memory (slurm.mem), use fewer loader workers, or load data lazily",
    ),
    F.NCCL_TIMEOUT: (
        "retry",
        "look at the rank that is behind or silent (stack dump, its log); restart, and exclude its "
        "node when it happens there again",
    ),
    F.NCCL_ERROR: (
        "retry",
        "restart; run once with NCCL_DEBUG=INFO; exclude the node when it fails there again",
    ),
    F.NODE_FAIL: ("exclude_node", "requeue without the lost node and tell the administrators"),
    F.PREEMPTED: ("resubmit", "requeue: training goes on from the newest checkpoint"),
    F.TIME_LIMIT: ("resubmit", "resume from the newest checkpoint, or ask for more time"),
    F.PYTHON_EXCEPTION: ("fix", "mend the program at the named line; a retry fails the same way"),
    F.NAN_LOSS: (
        "fix",
        "go back to a checkpoint before it, then lower the learning rate, clip, use bf16, or skip "
        "the data window",
    ),
    F.DISK_FULL: ("fix", "free space or raise the quota where checkpoints and caches are written"),
    F.SEGFAULT: (
        "retry",
        "restart once; if it crashes again, suspect versions of torch, CUDA and extensions",
    ),
    F.GPU_XID: ("exclude_node", "exclude the node, restart elsewhere, and report the GPU"),
    F.FILESYSTEM: (
        "retry",
        "check the mount and the permissions on that node, then restart from the checkpoint",
    ),
    F.IMPORT_ERROR: ("fix", "install what is missing, in versions that fit, where the ranks run"),
    F.CONFIG_ERROR: ("fix", "correct the named argument, key or resource request and submit again"),
    F.CONTAINER_ERROR: (
        "fix",
        "make image, mount sources (slurm.extra_mounts) and runtime (slurm.container_runtime) "
        "available under these names on every node, or leave the node out (slurm.exclude)",
    ),
    F.AUTH_ERROR: (
        "fix",
        "set a valid token where the ranks run (HF_TOKEN, WANDB_API_KEY) and request access",
    ),
    F.NETWORK_ERROR: (
        "retry",
        "check address, port, interface and proxy; download beforehand where nodes are offline",
    ),
    F.DATALOADER_WORKER: (
        "fix",
        "look at the worker's own error; use fewer workers, or more memory and /dev/shm",
    ),
    F.BENIGN: ("nothing", "nothing to do"),
}
_PROBABLE_KILL = "a process was killed, probably because the host's memory did not suffice"
_PROBABLE_END = "the job was ended from outside: cancelled, preempted, or stopped by its launcher"
_HAS_PREFIX = re.compile(r"^\s*(?:\[?rank[^\]]*\]:?|\d+:)\s*", re.IGNORECASE)


def remedy_for(root: Finding) -> Remedy:
    """What to do, naming the node where it is to be excluded."""
    step, text = _DO[root.kind]
    if root.node and step == "exclude_node":
        text = f"{text} (--exclude={root.node})"
    return Remedy(step, text)


def summary_of(root: Finding, straggler: Straggler | None) -> str:
    """One sentence: what happened, on which rank and node, in which words."""
    what = _WHAT[root.kind]
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
