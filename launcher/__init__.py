"""Start a run and keep it alive: ``from launcher import launch``.

    run = launch("configs/quickstart.yaml", overrides=["step_scheduler.max_steps=50"])
    run.wait()

Nothing here imports torch, and importing this package imports nothing at all; see
``docs/architecture.md`` for the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.run import Run
    from train.config import RunConfig

__all__ = ["Run", "launch"]


def launch(
    cfg: str | Path | Mapping[str, Any] | RunConfig,
    *,
    overrides: Sequence[str] = (),
    cluster: str | None = None,
    wait: bool = False,
    **changes: Any,
) -> Run:
    """Start a run and return a handle to it; the run does not need this process any more.

    Args:
        cfg: path of a YAML file, a mapping of sections, or a ``RunConfig``.
        overrides: ``["optimizer.lr=1e-4", ...]``, as on the command line.
        cluster: ``local``, ``slurm`` or ``auto``; default: what ``cfg`` says.
        wait: return only when the run has ended.
        changes: keys that replace those of ``cfg``: ``optimizer__lr=1e-4``, ``optimizer={"lr":
            1e-4}`` (merged into the section) or ``**{"optimizer.lr": 1e-4}``.

    Raises:
        train.errors.UserError: the input is wrong; nothing was started and nothing stays behind.
    """
    from launcher.prepare import prepare
    from launcher.run import Run
    from launcher.start import start

    run = Run(start(prepare(cfg, overrides=overrides, cluster=cluster, changes=changes)).root)
    if wait:
        run.wait()
    return run


def __getattr__(name: str) -> Any:
    if name == "Run":
        from launcher.run import Run

        return Run
    raise AttributeError(f"module 'launcher' has no attribute {name!r}")
