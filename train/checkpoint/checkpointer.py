"""Checkpointer: save in the background, publish when complete, load only what is verified.

A save is: copy the tensors (training waits for this), then in one thread: every rank writes,
flushes and hashes its files into a temporary folder; all agree that everyone succeeded; rank 0
seals it with the manifest, renames it into place, moves ``latest`` and prunes. Dying at any moment
leaves the previous checkpoints as they were.

Staging: copies of this rank's tensors that training cannot change while they are written.

The copy is the only thing training waits for. The buffers are kept for the next save, so the price
is once this rank's share of model and optimizer in host memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from submitrain.config.sections import CheckpointConfig
from submitrain.errors import CheckpointError, FencedError
from submitrain.events import Kind
from submitrain.train.callbacks.autosave import SaveCost
from submitrain.train.checkpoint.folders import CheckpointFolders
from submitrain.train.checkpoint.hf_weights import Pretrained
from submitrain.train.checkpoint.loading import load_newest, undone_checkpoints
from submitrain.train.checkpoint.manifest import TrainState
from submitrain.train.checkpoint.storage import Agreement
from submitrain.train.checkpoint.tensors import (
    Scalars,
    adapter_only,
    group_values,
    model_tensors,
    optimizer_state,
)
from submitrain.train.checkpoint.writing import Published, SaveTask, Snapshot, write_checkpoint
from submitrain.train.context import RankContext


class Stager:
    """Copies tensors into host buffers that are reused from save to save.

    ``stage`` may be called again only when nobody reads the result of the last call any more.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def stage(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy every tensor; a DTensor stays one, with its shard in host memory."""
        local = {name: _local(tensor) for name, tensor in tensors.items()}
        self._buffers = {name: self._fitting_buffer(name, tensor) for name, tensor in local.items()}
        devices = {tensor.device for tensor in local.values() if tensor.device.type != "cpu"}
        for name, tensor in local.items():
            self._buffers[name].copy_(tensor, non_blocking=bool(devices))
        for device in devices:
            torch.accelerator.synchronize(device)
        return {name: _rewrap(tensor, self._buffers[name]) for name, tensor in tensors.items()}

    def _fitting_buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype:
            return buffer
        pin = tensor.device.type == "cuda"
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pin)


def on_host(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether all tensors are in host memory."""
    return all(tensor.device.type == "cpu" for tensor in tensors.values())


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _rewrap(tensor: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """The buffer in the shape of the global tensor.

    ``DTensor.from_local`` would move it back to the mesh's device, so the shard of a detached
    DTensor is replaced, as torch.distributed._state_dict_utils does.
    """
    if not isinstance(tensor, DTensor):
        return buffer
    staged: Any = tensor.detach()
    staged._local_tensor = buffer
    return cast(torch.Tensor, staged)


log = structlog.get_logger()


@dataclass
class _Flight:
    """A save on its way; ``published`` or ``problem`` is set when its thread has ended."""

    task: SaveTask
    thread: threading.Thread | None = None
    published: Published | None = None
    problem: str = ""


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
        self._context = context
        self._settings = settings
        self._config_hash = config_hash
        self._agreement = Agreement(group)
        self._pretrained = pretrained or Pretrained()
        self._stager = Stager()
        self._flight: _Flight | None = None
        self._newest_step: int | None = None
        self._newest_cost: SaveCost | None = None
        self._configured: list[Scalars] | None = None
        self._rejected: set[Path] = set()

    def load_latest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState | None:
        """Load the newest checkpoint that verifies, in place; None if there is none at all.

        Falls back to older ones, with an event and a warning for each that is rejected. The world
        size may be another than the one that saved. Random numbers stay as they are.

        Raises:
            CheckpointError: there are checkpoints but none verifies, or it does not fit the model.
        """
        self.wait()
        started = time.monotonic()
        self._revoke_older()  # before anything is listed
        undone = undone_checkpoints(self._folders, self._context.run_dir, self._agreement)
        for path, reason in undone.items():
            self._reject(path, reason)
        if self._configured is None:
            self._configured = group_values(optimizer)
        loaded = load_newest(
            self._folders.root,
            model,
            optimizer,
            configured=self._configured,
            agreement=self._agreement,
            reject=self._reject,
            undone=undone,
        )
        if loaded is None:
            return None
        if loaded.manifest.config_hash != self._config_hash:
            self._log("checkpoint_of_another_config", path=str(loaded.path))
        self._newest_step = loaded.manifest.step
        if self._context.rank == 0:
            self._context.events.write(
                Kind.RESUME,
                step=loaded.manifest.step,
                path=str(loaded.path),
                load_s=round(time.monotonic() - started, 3),
            )
        return loaded.manifest.state

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
            blocked_s=time.monotonic() - started if background else None,
            rejected=frozenset(self._rejected),
        )
        self._start(task, snapshot)
        if not background:
            problem = self._join_save()
            if wait and problem:
                raise CheckpointError(
                    f"{self._folders.published(state.step)}: not saved: {problem}; see that the "
                    "disk has room and is writable, then resume from the previous checkpoint"
                )
        return time.monotonic() - started

    def ready(self) -> bool:
        """Whether a new save would start at once, because none is in flight."""
        flight = self._flight
        return flight is None or flight.thread is None or not flight.thread.is_alive()

    @property
    def newest_cost(self) -> SaveCost | None:
        """What the newest save of this attempt took that has ended, well or not."""
        return self._newest_cost

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

    def _revoke_older(self) -> None:
        """Rank 0, before the checkpoints are listed: older attempts can publish no more."""
        if self._context.rank != 0 or not self._folders.root.exists():
            return
        try:
            self._folders.revoke()
        except OSError as error:
            # On a folder that cannot be written nobody publishes; reading may go on.
            self._log("older_attempts_not_revoked", path=str(self._folders.root), why=str(error))

    def _snapshot(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, copy: bool
    ) -> Snapshot:
        optim = optimizer_state(model, optimizer, self._configured)
        tensors = {
            **{f"model:{name}": tensor for name, tensor in model_tensors(model).items()},
            **{f"optim:{name}": tensor for name, tensor in optim.tensors.items()},
        }
        if copy or not on_host(tensors):
            tensors = self._stager.stage(tensors)
        return Snapshot(
            model={n[6:]: t for n, t in tensors.items() if n.startswith("model:")},
            optimizer={n[6:]: t for n, t in tensors.items() if n.startswith("optim:")},
            scalars=optim.scalars,
            adapter_only=adapter_only(model),
            layout=self._pretrained.layout(model)
            if self._settings.save_consolidated == "every"
            else None,
        )

    def _start(self, task: SaveTask, snapshot: Snapshot) -> None:
        flight = _Flight(task)
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def run() -> None:
            # Whatever happens in here must reach the main thread as a text and not be lost.
            try:
                if device is not None:
                    torch.cuda.set_device(device)  # a thread's own, and it begins at 0
                flight.published = write_checkpoint(task, snapshot, self._agreement)
            except (Exception, CheckpointException) as error:
                flight.problem = f"{type(error).__name__}: {error}"
                self._record_failure(task, flight.problem)
            save_s = time.monotonic() - task.started
            blocked_s = save_s if task.blocked_s is None else task.blocked_s
            self._newest_cost = SaveCost(blocked_s, save_s)

        flight.thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._flight = flight
        flight.thread.start()

    def _join_save(self) -> str:
        """Wait for the save in flight and take note of its result; returns why it failed."""
        flight, self._flight = self._flight, None
        if flight is None or flight.thread is None:
            return ""
        flight.thread.join()
        if flight.published is Published.FENCED:
            raise FencedError(
                f"attempt {self._context.attempt} may not publish {flight.task.target}: attempt "
                f"{self._context.run_dir.newest_attempt()} owns the run folder now; this one ends"
            )
        if flight.published is not None:
            self._newest_step = flight.task.state.step
        return flight.problem

    def _record_failure(self, task: SaveTask, problem: str) -> None:
        if self._context.rank == 0:
            self._context.events.write(
                Kind.CHECKPOINT_FAILED,
                step=task.state.step,
                path=str(task.target),
                reason=problem,
            )
            self._log("checkpoint_failed", path=str(task.target), reason=problem)

    def _reject(self, path: Path, reason: str) -> None:
        self._rejected.add(path)
        if self._context.rank == 0:
            self._context.events.write(Kind.CHECKPOINT_REJECTED, path=str(path), reason=reason)
            self._log("checkpoint_rejected", path=str(path), reason=reason)

    def _log(self, event: str, **values: str) -> None:
        if self._context.rank == 0:
            log.warning(event, attempt=self._context.attempt, **values)
