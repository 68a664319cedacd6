"""``launch`` and ``sweep``: the Python interface. Importing it imports nothing heavy.

run = launch("configs/quickstart.yaml", overrides=["step_scheduler.max_steps=50"])
run.wait()

run = launch(my_package.training.main, entry={"steps": 100}, slurm={"nodes": 2})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

if TYPE_CHECKING:
    from submitrain.config import RunConfig
    from submitrain.launcher.run import Run
    from submitrain.launcher.sweeps.sweep import Sweep, SweepOptions


def launch(
    cfg: str | Path | Mapping[str, Any] | RunConfig | Callable[..., object],
    *,
    overrides: Sequence[str] = (),
    cluster: str | None = None,
    wait: bool = False,
    force: bool = False,
    max_wait: str | int | None = None,
    **changes: Any,
) -> Run:
    """Start a run and return a handle to it; the run does not need this process any more.

    Args:
        cfg: path of a YAML file, a mapping of sections, a ``RunConfig``, or a training function
            of your own, which then is the ``entry``.
        overrides: ``["optimizer.lr=1e-4", ...]``, as on the command line.
        cluster: ``local``, ``slurm`` or ``auto``; default: what ``cfg`` says.
        wait: return only when the run has ended.
        force: submit even if the job cannot be scheduled (``plan`` says why not).
        max_wait: refuse when the job would wait longer in the queue (``"2h"``, or minutes).
        changes: keys that replace those of ``cfg``: ``optimizer__lr=1e-4``, ``optimizer={"lr":
            1e-4}`` (merged into the section) or ``**{"optimizer.lr": 1e-4}``.

    Raises:
        submitrain.errors.UserError: the input is wrong; nothing was started and nothing stays
        behind.
    """
    from submitrain.launcher.checks.schedulability import max_wait_s, permit
    from submitrain.launcher.plan.overrides import as_config
    from submitrain.launcher.plan.prepare import prepare
    from submitrain.launcher.run import Run
    from submitrain.launcher.submit.start import start

    source, changes = as_config(cfg, changes)
    prepared = prepare(source, overrides=overrides, cluster=cluster, changes=changes)
    longest_s = max_wait_s(max_wait)
    schedulability = prepared.schedulability() if longest_s is not None or not force else None
    permit(schedulability, force=force, max_wait_s=longest_s)
    run = Run(start(prepared).root)
    if wait:
        run.wait()
    return run


def sweep(
    cfg: str | Path | Mapping[str, Any] | RunConfig,
    nodes: Sequence[int] | None = None,
    *,
    wait: bool = False,
    **options: Unpack[SweepOptions],
) -> Sweep:
    """Measure a configuration at several node counts, or over a grid of values; docs/sweeps.md.

        launch.sweep("cfg.yaml", nodes=[1, 2, 4], price=2.10).report()

    Args:
        cfg: as ``launch`` takes it.
        nodes: node counts to compare; None: a grid of runs of the configured length.
        wait: return only when all runs have ended.
        options: ``mode``, ``repeats``, ``grid``, ``steps``, ``warmup``, ``tokens``, ``price``,
            ``at_once``, ``overrides``, ``cluster``, ``changes``.

    Raises:
        submitrain.errors.UserError: the input is wrong; nothing was started.
    """
    from submitrain.launcher.sweeps.plan import plan_sweep
    from submitrain.launcher.sweeps.sweep import Sweep, request_of

    begun = Sweep.begin(plan_sweep(request_of(cfg, nodes, options)))
    if wait:
        begun.wait()
    return begun


launch.sweep = sweep  # type: ignore[attr-defined]
