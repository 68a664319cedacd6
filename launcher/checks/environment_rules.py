"""Variables of NCCL, CUDA, torch and OpenMP that do harm: verdict, reason and source of each. Pure.

An error is certain to break the run, a warning costs speed, memory or a clear message. Sources are
NVIDIA's and torch's documentation by title, and issues and pull requests by address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from submitrain.launcher.plan.memory import this_machine

if TYPE_CHECKING:
    from submitrain.config import RunConfig
    from submitrain.launcher.plan.plan import Plan


NCCL = "NCCL user guide, Environment Variables"
TORCH_NCCL = "torch documentation, ProcessGroupNCCL Environment Variables"
CUDA_GUIDE = "CUDA C++ Programming Guide, CUDA Environment Variables"
OURS = "docs/preflight.md"


@dataclass(frozen=True)
class Setting:
    """What a rule may depend on besides the variables."""

    on_gpu: bool = True
    nodes: int = 1
    ranks_per_node: int = 1
    cpus_per_rank: int | None = None
    """None where nobody knows."""
    interface: str | None = None
    """``distributed.interface``."""

    @classmethod
    def of(cls, plan: Plan, config: RunConfig) -> Setting:
        """That of a launch; on this machine ranks share its CPUs."""
        cpus = config.slurm.cpus_per_task
        if plan.cluster == "local":
            cpus = max(1, this_machine().cpus // plan.world_size)
        return cls(
            on_gpu=plan.gpus_per_node > 0,
            nodes=plan.nodes if plan.cluster == "slurm" else 1,
            ranks_per_node=plan.ranks_per_node,
            cpus_per_rank=cpus,
            interface=config.distributed.interface,
        )


Applies = Callable[[str, Mapping[str, str], Setting], bool]


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    variable: str
    verdict: Literal["error", "warning"]
    applies: Applies
    reason: str
    """Why it does harm, and what to do."""
    source: str


def _set(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    return value != ""


def _is(*values: str) -> Applies:
    return lambda value, environ, setting: value.strip().lower() in values


def _on(*also: Applies) -> Applies:
    """Only where there are GPUs, and the other conditions hold."""
    return lambda *given: given[2].on_gpu and all(one(*given) for one in also)


_YES = _is("1", "true", "yes", "on", "y")
_NO = _is("0", "false", "no", "off", "n")


def _only_loopback(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    return setting.nodes > 1 and value.lstrip("=") in ("lo", "lo0")


def _one_name(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    fixed = value and not value.startswith("^") and value.lstrip("=") not in ("lo", "lo0")
    return bool(fixed) and setting.nodes > 1


def _prefix(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    return _one_name(value, environ, setting) and not value.startswith("=")


def _against_key(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    names = {one.strip() for one in (setting.interface or "").split(",")}
    return setting.interface is not None and value.lstrip("=") not in names


def _few_devices(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    count = 0 if value.strip() in ("", "-1") else len(value.split(","))
    return setting.on_gpu and count < setting.ranks_per_node


def _too_many_threads(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    threads = int(value) if value.isdigit() else 0
    return setting.cpus_per_rank is not None and threads > setting.cpus_per_rank


def _split_and_expandable(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    words = value.replace(" ", "").lower()
    return "expandable_segments:true" in words and "max_split_size_mb" in words


def _one_file(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    return bool(value) and "%p" not in value


def _ring_or_tree(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    names = {name.strip().lower() for name in re.split(r"[,;]", value)}
    return bool(value) and not value.startswith("^") and names <= {"ring", "tree"}


def _asks_ll128(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    return not value.startswith("^") and "ll128" in value.lower()


def _other_proto(value: str, environ: Mapping[str, str], setting: Setting) -> bool:
    return bool(value) and not value.startswith("^") and "ll128" not in value.lower()


_TUNED = "NCCL chooses it for every pair of GPUs by what it measures and knows; remove it"
_RENAMED = "NCCL does not read it any more; "
_SPEED = "remove it: it was for finding an error, and slows every step"
_MASTER = (
    "ranks meet through the run folder on a free port, so it changes nothing there; training code "
    "of your own that binds it collides with the next job on the node; remove it"
)
_RANKS = "every rank would get the same one; submitrain numbers the ranks itself: remove it"

RULES: tuple[Rule, ...] = (
    Rule(
        "NCCL_ALGO",
        "warning",
        _on(_ring_or_tree),
        "it rules out NVLS and CollNet, the fastest on NVSwitch and SHARP; remove it",
        NCCL,
    ),
    Rule(
        "NCCL_PROTO",
        "warning",
        _on(_asks_ll128),
        "LL128 on a platform that does not guarantee its stores corrupts data; remove it",
        NCCL,
    ),
    Rule("NCCL_PROTO", "warning", _on(_other_proto), _TUNED, NCCL),
    Rule(
        "NCCL_SOCKET_IFNAME",
        "error",
        _only_loopback,
        "the loopback interface leads to no other node; remove it",
        NCCL,
    ),
    Rule(
        "NCCL_SOCKET_IFNAME",
        "warning",
        _on(_prefix),
        "it is a prefix, and NCCL fails on a node where no interface begins so (a name that is "
        "right on one node may be missing on the next); remove it, or write distributed.interface",
        NCCL,
    ),
    Rule(
        "NCCL_SOCKET_IFNAME",
        "warning",
        _against_key,
        "distributed.interface names another one, and this variable wins for NCCL; remove one",
        OURS,
    ),
    Rule(
        "GLOO_SOCKET_IFNAME",
        "error",
        _only_loopback,
        "the loopback interface leads to no other node; remove it",
        "torch documentation, Distributed communication package",
    ),
    Rule(
        "GLOO_SOCKET_IFNAME",
        "warning",
        _against_key,
        "distributed.interface names another one, and this variable wins for gloo; remove one",
        OURS,
    ),
    Rule("NCCL_NET_GDR_LEVEL", "warning", _on(_set), _TUNED, NCCL),
    Rule("NCCL_P2P_LEVEL", "warning", _on(_set), _TUNED, NCCL),
    Rule("NCCL_MAX_NCHANNELS", "warning", _on(_set), _TUNED, NCCL),
    Rule("NCCL_MIN_NCHANNELS", "warning", _on(_set), _TUNED, NCCL),
    Rule("NCCL_NTHREADS", "warning", _on(_set), _TUNED, NCCL),
    Rule("NCCL_BUFFSIZE", "warning", _on(_set), _TUNED, NCCL),
    Rule(
        "NCCL_IB_DISABLE",
        "warning",
        _on(_YES),
        "traffic between nodes goes over TCP, many times slower than InfiniBand or RoCE; remove it",
        NCCL,
    ),
    Rule(
        "NCCL_P2P_DISABLE",
        "warning",
        _on(_YES),
        "GPUs of a node copy through host memory instead of NVLink or PCIe; remove it",
        NCCL,
    ),
    Rule(
        "NCCL_SHM_DISABLE",
        "warning",
        _on(_YES),
        "GPUs of a node without peer access talk over the network; remove it",
        NCCL,
    ),
    Rule(
        "NCCL_DEBUG",
        "warning",
        _is("trace"),
        "every call of every rank is logged; write INFO, and only while you look for an error",
        NCCL,
    ),
    Rule(
        "NCCL_DEBUG_FILE",
        "warning",
        _one_file,
        "all ranks of a host write into one file; put %h and %p into its name",
        NCCL,
    ),
    Rule("NCCL_IB_CUDA_SUPPORT", "warning", _set, _RENAMED + "remove it", NCCL),
    Rule("NCCL_RINGS", "warning", _set, _RENAMED + "remove it", NCCL),
    Rule("NCCL_MAX_NRINGS", "warning", _set, _RENAMED + "remove it", NCCL),
    Rule("NCCL_MIN_NRINGS", "warning", _set, _RENAMED + "remove it", NCCL),
    Rule("NCCL_LL_THRESHOLD", "warning", _set, _RENAMED + "remove it", NCCL),
    Rule("NCCL_TREE_THRESHOLD", "warning", _set, _RENAMED + "remove it", NCCL),
    Rule(
        "NCCL_ASYNC_ERROR_HANDLING",
        "warning",
        _set,
        "torch reads TORCH_NCCL_ASYNC_ERROR_HANDLING, which is on by default; remove it",
        TORCH_NCCL,
    ),
    Rule(
        "NCCL_BLOCKING_WAIT",
        "warning",
        _set,
        "torch reads TORCH_NCCL_BLOCKING_WAIT, which is off for good reason; remove it",
        TORCH_NCCL,
    ),
    Rule(
        "TORCH_NCCL_BLOCKING_WAIT",
        "warning",
        _on(_YES),
        "the host waits for every collective, so that nothing overlaps; remove it",
        TORCH_NCCL,
    ),
    Rule(
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "warning",
        _on(_NO),
        "a collective that hangs is then never ended by torch, and its rank never says why; "
        "remove it",
        TORCH_NCCL,
    ),
    Rule(
        "TORCH_DISTRIBUTED_DEBUG",
        "warning",
        _is("detail"),
        "every collective is checked against all ranks by another one; " + _SPEED,
        "torch documentation, Distributed communication package",
    ),
    Rule(
        "TORCH_SHOW_CPP_STACKTRACES",
        "warning",
        _YES,
        "every exception that torch catches is symbolised, minutes on a slow file system; "
        + _SPEED,
        "torch documentation, Miscellaneous Environment Variables",
    ),
    Rule(
        "CUDA_LAUNCH_BLOCKING",
        "warning",
        _on(_YES),
        "every kernel is waited for, so that nothing overlaps; " + _SPEED,
        CUDA_GUIDE,
    ),
    Rule(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "warning",
        _on(_is("1")),
        "it is for Megatron's tensor parallelism: FSDP then cannot overlap its collectives with "
        "computing; remove it",
        "github.com/pytorch/torchtitan/issues/1147, github.com/verl-project/verl/pull/6976",
    ),
    Rule(
        "CUDA_VISIBLE_DEVICES",
        "error",
        _few_devices,
        "it shows fewer GPUs than slurm.ntasks_per_node ranks of a node need; remove it: every "
        "rank takes the GPU of its local rank",
        CUDA_GUIDE,
    ),
    Rule(
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "warning",
        _on(_YES),
        "every tensor is a cudaMalloc, which waits for the device; " + _SPEED,
        "torch documentation, CUDA Environment Variables",
    ),
    Rule(
        "PYTORCH_CUDA_ALLOC_CONF",
        "warning",
        _on(_split_and_expandable),
        "max_split_size_mb means nothing to expandable segments: older torch fails an assertion, "
        "newer torch reserves memory without bound; remove max_split_size_mb",
        "github.com/pytorch/pytorch/issues/123548, github.com/pytorch/pytorch/pull/134338",
    ),
    Rule(
        "PYTORCH_ALLOC_CONF",
        "warning",
        _on(_split_and_expandable),
        "max_split_size_mb means nothing to expandable segments: torch reserves memory without "
        "bound; remove max_split_size_mb",
        "github.com/pytorch/pytorch/issues/123548, github.com/pytorch/pytorch/pull/193400",
    ),
    Rule(
        "OMP_NUM_THREADS",
        "warning",
        _too_many_threads,
        "a rank has fewer CPUs than that, so its threads take turns; remove it: it is set to the "
        "rank's share",
        "OpenMP specification, OMP_NUM_THREADS",
    ),
    Rule("MASTER_PORT", "warning", _set, _MASTER, OURS),
    Rule("MASTER_ADDR", "warning", _set, _MASTER, OURS),
)
"""Over everything that reaches the ranks, wherever it was set."""

CONFIGURED_RULES: tuple[Rule, ...] = (
    *(
        Rule(name, "error", _set, _RANKS, OURS)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    ),
    Rule(
        "PYTHONPATH",
        "error",
        _set,
        "it would replace the path to the code that was pinned for this run; write it into "
        "slurm.setup: export PYTHONPATH=/your/folder:$PYTHONPATH",
        OURS,
    ),
)
"""Over ``slurm.env`` alone: what a shell has of these never reaches the ranks, or does no harm."""
OWN_NAMES = re.compile(r"^(SUBMITRAIN|SLURM|SLURMD|SRUN|SBATCH|SUBMITIT|PMI|PMIX)_")
"""Names that Slurm and we give; in ``slurm.env`` they would mislead srun or a rank."""
