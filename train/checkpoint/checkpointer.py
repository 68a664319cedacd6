"""Checkpointer: save in the background, publish when complete, load only what is verified.

Training waits for a copy of this rank's tensors only; ``write_checkpoint`` does the rest in a
thread. The copy's buffers are kept for the next save, so the price is once this rank's share of
model and optimizer in host memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from submitrain.config.sections import CheckpointConfig
from submitrain.errors import CheckpointError
from submitrain.events import Kind
from submitrain.train.callbacks.autosave import SaveCost
from submitrain.train.checkpoint.folders import CheckpointFolders
from submitrain.train.checkpoint.hf_weights import Pretrained
from submitrain.train.checkpoint.loading import CheckpointSearch, load_newest
from submitrain.train.checkpoint.manifest import TrainState
from submitrain.train.checkpoint.storage import RankGroup
from submitrain.train.checkpoint.tensors import (
    Scalars,
    adapter_only,
    group_values,
    model_tensors,
    optimizer_state,
)
from submitrain.train.checkpoint.writing import Published, SaveTask, Snapshot, write_checkpoint
from submitrain.train.context import RankContext

log = structlog.get_logger()


class Stager:
    """Copies tensors into host buffers that are reused from save to save.

    ``stage`` may be called again only when nobody reads the result of the last call any more.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def stage(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy every tensor; a DTensor stays one, with its shard in host memory."""
        staged: dict[str, torch.Tensor] = {}
        devices: set[torch.device] = set()
        old, self._buffers = self._buffers, {}
        for name, tensor in tensors.items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            on_host = local.device.type == "cpu"
            buffer = old.pop(name, None)
            if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
                pin = local.device.type == "cuda"
                buffer = torch.empty(local.shape, dtype=local.dtype, device="cpu", pin_memory=pin)
            self._buffers[name] = buffer.copy_(local.detach(), non_blocking=not on_host)
            staged[name] = buffer
            if not on_host:
                devices.add(local.device)
            if isinstance(tensor, DTensor):
                # DTensor.from_local would move it back to the mesh's device, so the shard of a
                # detached DTensor is replaced, as torch.distributed._state_dict_utils does.
                wrapped: Any = tensor.detach()
                wrapped._local_tensor = buffer
                staged[name] = wrapped
        for device in devices:
            torch.accelerator.synchronize(device)
        return staged


class PendingSave(threading.Thread):
    """A save on its way; ``published`` or ``problem`` is set when its thread has ended."""

    def __init__(self, task: SaveTask, snapshot: Snapshot, ranks: RankGroup) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.task, self.snapshot, self.ranks = task, snapshot, ranks
        self.published: Published | None = None
        self.problem = ""
        self.cost: SaveCost | None = None
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run(self) -> None:
        """Write and publish; an error must reach the main thread as a text and not be lost."""
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)  # a thread's own, and it begins at 0
            self.published = write_checkpoint(self.task, self.snapshot, self.ranks)
        except (Exception, CheckpointException) as error:
            self.problem = f"{type(error).__name__}: {error}"
            self.task.record_failure(self.problem)
        save_s = time.monotonic() - self.task.started
        blocked_s = save_s if self.task.blocked_s is None else self.task.blocked_s
        self.cost = SaveCost(blocked_s, save_s)


class Checkpointer:
    """Saves and loads the checkpoints of one run; every rank has one and makes the same calls.

    ``group`` is a gloo group over all ranks that nothing else uses: its collectives run in the
    saving thread. ``pretrained`` says how the whole-model folder looks that every checkpoint gets
    when ``save_consolidated`` is ``every``.
    """

    def __init__(
        self,
        *,
        folder: Path,
        context: RankContext,
        settings: CheckpointConfig,
        config_hash: str,
        group: dist.ProcessGroup,
        pretrained: Pretrained | None = None,
    ) -> None:
        self._folders = CheckpointFolders(folder, context.fence)
        self._search = CheckpointSearch(self._folders, context)
        self._context = context
        self._settings = settings
        self._config_hash = config_hash
        self._ranks = RankGroup(group)
        self._pretrained = pretrained or Pretrained()
        self._stager = Stager()
        self._pending: PendingSave | None = None
        self._newest_step: int | None = None
        self._newest_cost: SaveCost | None = None
        self._configured: list[Scalars] | None = None

    def load_latest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState | None:
        """Load the newest checkpoint that verifies, in place; None if there is none at all.

        Falls back to older ones, with an event and a warning for each that is rejected. The world
        size may be another than the one that saved. Random numbers stay as they are.

        Raises:
            CheckpointError: there are checkpoints but none verifies, or it does not fit the model.
        """
        self.wait()
        started = time.monotonic()
        if self._configured is None:
            self._configured = group_values(optimizer)
        loaded = load_newest(self._search, self._ranks, model, optimizer, self._configured)
        if loaded is None:
            return None
        path, manifest = loaded
        self._newest_step = manifest.step
        if self._context.rank == 0:
            if manifest.config_hash != self._config_hash:
                attempt = self._context.attempt
                log.warning("checkpoint_of_another_config", attempt=attempt, path=str(path))
            load_s = round(time.monotonic() - started, 3)
            self._context.events.write(
                Kind.RESUME, step=manifest.step, path=str(path), load_s=load_s
            )
        return manifest.state

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        *,
        wait: bool,
    ) -> float:
        """Save; returns the seconds that training was blocked.

        Without ``wait`` a save that fails is logged and recorded, and training goes on.

        Raises:
            CheckpointError: ``wait`` was asked for and the checkpoint could not be published.
            FencedError: a newer attempt owns the run folder.
        """
        started = time.monotonic()
        self.wait()
        if state.step == self._newest_step:
            return time.monotonic() - started
        background = self._settings.async_save and not wait
        snapshot = self._snapshot(model, optimizer, copy=background)
        task = SaveTask(
            folders=self._folders,
            context=self._context,
            settings=self._settings,
            config_hash=self._config_hash,
            state=state,
            started=started,
            rejected=frozenset(self._search.rejected),
            model_format=self._settings.model_save_format,
            adapter_only=adapter_only(model),
            blocked_s=time.monotonic() - started if background else None,
        )
        self._pending = PendingSave(task, snapshot, self._ranks)
        self._pending.start()
        if not background:
            problem = self._join_save()
            if wait and problem:
                raise CheckpointError(
                    f"{task.target}: not saved: {problem}; see that the "
                    "disk has room and is writable, then resume from the previous checkpoint"
                )
        return time.monotonic() - started

    def ready(self) -> bool:
        """Whether a new save would start at once, because none is in flight."""
        return self._pending is None or not self._pending.is_alive()

    @property
    def newest_cost(self) -> SaveCost | None:
        """What the newest save of this attempt took that has ended, well or not."""
        return (self._pending and self._pending.cost) or self._newest_cost

    def wait(self) -> None:
        """Wait until no save is in flight.

        Raises:
            FencedError: the save found that a newer attempt owns the run folder.
        """
        self._join_save()

    def close(self) -> None:
        """Wait for the save in flight and give the host buffers back."""
        self.wait()
        self._stager = Stager()

    def _snapshot(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, copy: bool
    ) -> Snapshot:
        optim = optimizer_state(model, optimizer, self._configured)
        tensors = {
            **{f"model:{name}": tensor for name, tensor in model_tensors(model).items()},
            **{f"optim:{name}": tensor for name, tensor in optim.tensors.items()},
        }
        if copy or any(tensor.device.type != "cpu" for tensor in tensors.values()):
            tensors = self._stager.stage(tensors)
        every = self._settings.save_consolidated == "every"
        return Snapshot(
            model={n[6:]: t for n, t in tensors.items() if n.startswith("model:")},
            optimizer={n[6:]: t for n, t in tensors.items() if n.startswith("optim:")},
            scalars=optim.scalars,
            layout=self._pretrained.layout(model) if every else None,
        )

    def _join_save(self) -> str:
        """Wait for the save in flight and take note of its result; returns why it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return ""
        pending.join()
        self._newest_cost = pending.cost
        if pending.published is Published.FENCED:
            raise pending.task.fenced_error()
        if pending.published is not None:
            self._newest_step = pending.task.state.step
        return pending.problem
