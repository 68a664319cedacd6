"""The other ranks of an attempt, for a training function of the user's own.

The function may form the process group by ``RunContext.init_process_group``, by torch's own
``init_process_group()`` or by accelerate's: the variables that torchrun would set are there, and
name the store that the ranks have met in already. No port is agreed on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from train.checkpoint.agreement import Agreement
from train.config.sections import DistributedConfig
from train.context import RankContext
from train.dist import connect


@dataclass
class Peers:
    """All ranks of this attempt as one of them sees them."""

    context: RankContext
    settings: DistributedConfig
    store: Store
    device: torch.device
    _control: dist.ProcessGroup | None = field(default=None, init=False)

    def publish_address(self) -> None:
        """Set the variables by which torch, accelerate and others find the process group.

        TORCHELASTIC_USE_AGENT_STORE makes torch join the store at MASTER_ADDR:MASTER_PORT instead
        of opening one there (torch.distributed.rendezvous, 2.13).
        """
        context = self.context
        os.environ |= {
            "RANK": str(context.rank),
            "WORLD_SIZE": str(context.world_size),
            "LOCAL_RANK": str(context.local_rank),
            "LOCAL_WORLD_SIZE": str(context.local_world_size),
            "MASTER_ADDR": str(self.store.host),  # type: ignore[attr-defined]
            "MASTER_PORT": str(self.store.port),  # type: ignore[attr-defined]
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    def connect(self) -> None:
        """Form the default process group, unless the function has done so already."""
        if not dist.is_initialized():
            connect(self.context, self.settings, self.store, self.device)

    @property
    def agreement(self) -> Agreement:
        """Collectives of a gloo group that nothing else uses; all ranks make it together."""
        if self.context.world_size == 1:
            return Agreement(None)
        if self._control is None:
            self.connect()
            timeout = timedelta(seconds=self.settings.timeout_s)
            self._control = dist.new_group(backend="gloo", timeout=timeout)
        return Agreement(self._control)

    def highest(self, *values: int) -> list[int]:
        """The highest of all ranks' values, place by place; the same on every rank."""
        group = self.agreement.group
        if group is None:
            return list(values)
        vote = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(vote, dist.ReduceOp.MAX, group=group)
        return [int(value) for value in vote.tolist()]

    def wait_for_all(self, point: str) -> None:
        """Wait until every rank has come to ``point``; needs no process group."""
        names = [f"own/{point}/{rank}" for rank in range(self.context.world_size)]
        self.store.set(names[self.context.rank], "here")
        self.store.wait(names, timedelta(seconds=self.settings.timeout_s))

    def leave(self) -> None:
        """Say goodbye; rank 0, which holds the store, goes last."""
        context = self.context
        self.store.set(f"own/left/{context.rank}", "gone")
        if context.rank == 0:
            self.wait_for_all("left")
