"""Real ranks in milliseconds: forked from a server that has imported torch and the recipe.

``run_forked(world_size, work, folder, ...)`` runs ``work(context, *arguments)`` on every rank of
the next attempt in ``folder`` and returns their results. Each rank is a process of its own,
warnings are errors in it, and it meets the others as in production
(``train.distributed.groups.join``).
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import structlog

from submitrain.config import RunConfig
from submitrain.run_folder import RunDir
from submitrain.signals import StopFlag, StopReason
from submitrain.train.context import RankContext

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.forked_imports"])


class StopAt(StopFlag):
    """Asks for a stop once this rank has finished ``step`` steps."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.context: RankContext | None = None

    @property
    def reason(self) -> StopReason:
        assert self.context is not None
        reached = self.context.step >= self.step
        return StopReason.ASKED if reached else StopReason.NONE

    @reason.setter
    def reason(self, value: StopReason) -> None:
        """What others ask for is of no interest here."""


def run_forked(
    world_size: int, work: Callable[..., Any], folder: Path, *arguments: Any, timeout_s: float = 200
) -> list[Any]:
    """Results of all ranks; raises what any of them raised, as text."""
    folder.mkdir(parents=True, exist_ok=True)
    attempt = RunDir(folder).claim_attempt()
    processes: list[ForkServerProcess] = []
    pipes: list[Connection] = []
    for rank in range(world_size):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(
            target=_main, args=(sender, work, folder, attempt, rank, world_size, arguments)
        )
        process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    try:
        results = [pipe.recv() if pipe.poll(timeout_s) else (False, "no answer") for pipe in pipes]
    except EOFError:
        results = [(False, f"a rank died: exit codes {[p.exitcode for p in processes]}")]
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
    failures = [text for ok, text in results if not ok]
    failures += [f"a rank ended with {p.exitcode}" for p in processes if p.exitcode != 0]
    assert not failures, "\n".join(failures)
    return [value for _, value in results]


def train(context: RankContext, config: dict[str, Any], stop_at: int | None = None) -> int:
    """Work of a rank: the whole recipe; with ``stop_at`` the last rank asks for a stop then."""
    from submitrain.train.recipe import main

    if stop_at is not None and context.rank == context.world_size - 1:
        context.stop = StopAt(stop_at)
        context.stop.context = context
    return main(context, RunConfig.model_validate(config))


def _main(
    sender: Connection,
    work: Callable[..., Any],
    folder: Path,
    attempt: int,
    rank: int,
    world_size: int,
    arguments: tuple[Any, ...],
) -> None:
    warnings.simplefilter("error")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.set_start_method("fork", force=True)  # for loader processes, as in production
    import torch

    torch.set_num_threads(1)
    context = RankContext(RunDir(folder), attempt, "test", rank, world_size, rank, world_size)
    try:
        sender.send((True, work(context, *arguments)))
    except BaseException:
        sender.send((False, f"rank {rank}: {traceback.format_exc()}"))
    os._exit(0)
