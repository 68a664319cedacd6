"""Real ranks for checkpoint tests: forked from a server that has imported torch, joined over gloo.

``run_ranks(world_size, work, folder, ...)`` runs ``work(rank, *arguments)`` on every rank and
returns their results; ``World`` starts them without waiting, so that a test can kill them.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import structlog

from submitrain.run_folder import RunDir
from submitrain.train.context import RankContext

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.checkpoint_preload"])


@dataclass
class Rank:
    """One rank: what it is, and the group that only checkpoints use."""

    context: RankContext
    group: Any

    @property
    def index(self) -> int:
        return self.context.rank

    @property
    def world_size(self) -> int:
        return self.context.world_size


@dataclass
class World:
    """Running ranks of one attempt."""

    run_dir: RunDir
    processes: list[ForkServerProcess] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)

    def results(self, timeout_s: float = 120) -> list[Any]:
        """Every rank's result; raises what a rank raised, as text."""
        results = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(timeout_s):
                raise TimeoutError(f"rank {rank} gave no result in {timeout_s} s")
            results.append(pipe.recv())
        self.end()
        failures = [text for ok, text in results if not ok]
        assert not failures, "\n".join(failures)
        return [value for _, value in results]

    def kill(self) -> None:
        """SIGKILL every rank at once."""
        for process in self.processes:
            process.kill()
        self.end()

    def end(self) -> None:
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()


def start_ranks(
    world_size: int,
    work: Callable[..., Any],
    root: Path,
    *arguments: Any,
    attempt: int | None = None,
) -> World:
    """Start ``world_size`` ranks of a new attempt of the run in ``root``."""
    run_dir = RunDir(root)
    root.mkdir(parents=True, exist_ok=True)
    attempt = run_dir.claim_attempt() if attempt is None else attempt
    store = tempfile.mktemp(prefix="store-", dir=root)
    world = World(run_dir)
    for rank in range(world_size):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(
            target=_rank_main,
            args=(sender, work, root, attempt, rank, world_size, store, arguments),
        )
        process.start()
        sender.close()
        world.processes.append(process)
        world.pipes.append(receiver)
    return world


def run_ranks(
    world_size: int,
    work: Callable[..., Any],
    root: Path,
    *arguments: Any,
    attempt: int | None = None,
) -> list[Any]:
    """Run ``work(rank, *arguments)`` on every rank of a new attempt and return the results."""
    return start_ranks(world_size, work, root, *arguments, attempt=attempt).results()


def _rank_main(
    sender: Connection,
    work: Callable[..., Any],
    root: Path,
    attempt: int,
    rank: int,
    world_size: int,
    store: str,
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    warnings.simplefilter("error")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    torch.set_num_threads(1)
    context = RankContext(RunDir(root), attempt, "test", rank, world_size, rank, world_size)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=60))
        sender.send((True, work(Rank(context, group), *arguments)))
    except BaseException:
        sender.send((False, f"rank {rank}: {traceback.format_exc()}"))
    os._exit(0)  # torch 2.13 with gloo aborts at a normal exit now and then
