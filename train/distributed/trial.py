"""All ranks of a job meet, reduce and multiply once, before training: the preflight's last tier.

Every rank writes its results into a file of its own, and which stage it enters before: a rank that
hangs is known by the stage it did not leave.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist

from submitrain.config import RunConfig
from submitrain.preflight_results import RankReport
from submitrain.train.context import RankContext
from submitrain.train.distributed.groups import choose_device, connect, meet, set_threads

REDUCE_SIZES = (1, 1000, 2**20)
"""Elements of the tensors whose sums are checked: a word, something odd, 4 MiB."""
TIMED_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
TIMED_REPEATS = 5
MATMUL_SIZE = {"cpu": 384, "cuda": 8192}
MATMUL_REPEATS = {"cpu": 40, "cuda": 20}
_MODULUS = 251


def run_trial(context: RankContext, config: RunConfig, folder: Path, timeout_s: int) -> None:
    """Go through all stages; what was seen is in ``folder`` whatever happens to other ranks.

    Raises:
        Exception: whatever torch raises; the caller records it (``RankReport.error``).
    """
    report = RankReport(context.rank, host_name())

    def enter(stage: str) -> None:
        report.stage = stage
        report.write(folder)

    settings = config.distributed.model_copy(update={"timeout_s": timeout_s})
    set_threads(context.local_world_size)
    enter("multiply")
    device = choose_device(settings.backend, context.local_rank)
    report.device = device.type
    report.matmul_s = time_matmul(device)
    enter("meet")
    began = time.monotonic()
    rendezvous = folder / "rendezvous.json"
    store = meet(context, timeout_s=timeout_s, interface=settings.interface, path=rendezvous)
    report.meet_s = round(time.monotonic() - began, 4)
    enter("join")
    began = time.monotonic()
    connect(context, settings, store, device)
    report.join_s = round(time.monotonic() - began, 4)
    enter("reduce")
    report.wrong = [size for size in REDUCE_SIZES if not sums_are_right(context, device, size)]
    enter("time")
    report.reduce_bytes, report.reduce_s = time_reduce(device)
    enter("done")


def host_name() -> str:
    """Name of this rank's node; simulated nodes are one machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def sums_are_right(context: RankContext, device: torch.device, size: int) -> bool:
    """Whether an all-reduce of small whole numbers is exact on this rank.

    Every element is below 2**24, so float32 holds the sum exactly in any order of adding.
    """
    base = torch.arange(size, device=device) % _MODULUS
    values = (base + context.rank % _MODULUS).to(torch.float32)
    ranks = sum(rank % _MODULUS for rank in range(context.world_size))
    expected = (base * context.world_size + ranks).to(torch.float32)
    dist.all_reduce(values)
    return bool(torch.equal(values, expected))


def time_reduce(device: torch.device) -> tuple[int, float]:
    """Bytes and seconds of the quickest of a few all-reduces."""
    size = TIMED_BYTES[device.type]
    values = torch.ones(size // 4, device=device)
    times = []
    for _ in range(TIMED_REPEATS):
        _synchronize(device)
        began = time.perf_counter()
        dist.all_reduce(values)
        _synchronize(device)
        times.append(time.perf_counter() - began)
    return size, round(min(times), 6)


def time_matmul(device: torch.device) -> float:
    """Seconds of the quickest of many matrix products on this rank's device.

    The quickest, and on a CPU its processor time: others may use the same cores meanwhile.
    """
    size = MATMUL_SIZE[device.type]
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time
    kind = torch.bfloat16 if on_gpu else torch.float32
    left = torch.full((size, size), 0.5, device=device, dtype=kind)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    try:
        for _ in range(MATMUL_REPEATS[device.type]):
            _synchronize(device)
            began = clock()
            torch.mm(left, left)
            _synchronize(device)
            times.append(clock() - began)
    finally:
        torch.set_num_threads(threads)
    return round(min(times), 7)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
