"""What all ranks think: object collectives over the gloo group that only checkpoints use.

Never from two threads at once: the saving thread has the group from the start of a save to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from train.errors import CheckpointError

T = TypeVar("T")


class AgreedError(CheckpointError):
    """Work that failed on some rank; every rank gets this error with the same text."""


@dataclass(frozen=True)
class Agreement:
    """Collectives of one group; None means a single process without torch.distributed."""

    group: dist.ProcessGroup | None

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return dist.get_rank(self.group) if self.group is not None else 0

    @property
    def world_size(self) -> int:
        """Number of ranks in the group."""
        return dist.get_world_size(self.group) if self.group is not None else 1

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in rank order, on every rank."""
        if self.group is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do ``work`` on every rank and return all results, or fail on every rank.

        Raises:
            AgreedError: it failed somewhere; the text names the ranks and their errors.
        """
        value, problem = _attempt(work)
        results = self.gather((value, problem))
        problems = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(results) if text]
        if problems:
            raise AgreedError("; ".join(dict.fromkeys(problems)))
        return [result for result, _ in results]  # type: ignore[misc]

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Do ``work`` on rank 0 and return its result on every rank, or fail on every rank.

        Raises:
            AgreedError: it failed.
        """
        return self.together(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]


def _attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    # Any error at all: a rank that does not come to the gathering would hang the others.
    try:
        return work(), ""
    except CheckpointException as error:
        causes = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
        return None, ", ".join(sorted(causes))
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
