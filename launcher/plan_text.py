"""A plan as text for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.memory import GB
from train.config.types import format_duration

if TYPE_CHECKING:
    from launcher.plan import Plan

_WIDTH = 13


def render(plan: Plan) -> str:
    """One line for each fact, then notes and warnings; ends without a line break."""
    where = "this machine" if plan.cluster == "local" else "Slurm"
    gpus = f", {plan.gpus_per_node} GPUs per node" if plan.gpus_per_node else ", no GPUs"
    rows = [
        ("run", f"{plan.name} ({plan.digest[:8]}) on {where}"),
        ("ranks", f"{_nodes(plan)} x {plan.ranks_per_node} ranks = {_world(plan)}{gpus}"),
        *_spares(plan),
        *([("trains", plan.entry)] if plan.entry else _batch(plan)),
        ("steps", plan.steps.text),
        ("time limit", f"{format_duration(plan.time_limit_s)} for each job"),
        *_sizes(plan),
        ("saves", plan.saves),
        ("watcher", plan.watcher),
    ]
    lines = [f"{label:<{_WIDTH}}{text}" for label, text in rows]
    lines += [f"{'note':<{_WIDTH}}{note}" for note in plan.notes]
    lines += [f"{'warning':<{_WIDTH}}{warning}" for warning in plan.warnings]
    return "\n".join(lines)


def _nodes(plan: Plan) -> str:
    if plan.min_nodes < plan.nodes:
        return f"{plan.min_nodes} to {plan.nodes} nodes"
    return f"{plan.nodes} node{'s' if plan.nodes > 1 else ''}"


def _world(plan: Plan) -> str:
    if plan.min_nodes < plan.nodes:
        return f"{plan.min_nodes * plan.ranks_per_node} to {plan.world_size}"
    return str(plan.world_size)


def _batch(plan: Plan) -> list[tuple[str, str]]:
    meaning = "(local x accumulation x world)"
    if plan.min_nodes == plan.nodes:
        return [("batch", f"{plan.batch}  {meaning}")]
    return [
        ("batch", f"{plan.batch} on {plan.nodes} nodes  {meaning}"),
        ("", f"{plan.smallest_batch} on {plan.min_nodes}: the same steps, fewer ranks"),
    ]


def _spares(plan: Plan) -> list[tuple[str, str]]:
    """Spares cost as much as nodes that train; locally there are none."""
    if not plan.spare_nodes or plan.cluster == "local":
        return []
    spares, charged = plan.spare_nodes, plan.nodes + plan.spare_nodes
    gpus = spares * plan.gpus_per_node
    idle = f"{gpus} GPUs idle" if gpus else "idle"
    return [
        (
            "spare",
            f"{spares} node{'s' if spares > 1 else ''}, {idle} until another one fails: {charged} "
            f"nodes are charged, {100 * spares / plan.nodes:.0f}% more",
        )
    ]


def _sizes(plan: Plan) -> list[tuple[str, str]]:
    estimates = plan.estimates
    memory = estimates.rank_memory
    if estimates.parameters is None or memory is None or estimates.checkpoint_bytes is None:
        return []
    trained = ""
    if estimates.trained_parameters not in (None, estimates.parameters):
        trained = f", {_count(estimates.trained_parameters or 0)} trained"
    parts = (
        ("weights", memory.parameters + memory.gathered),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
        ("logits", memory.logits),
    )
    return [
        ("model", f"{_count(estimates.parameters)} parameters{trained}"),
        (
            "rank memory",
            f"about {_bytes(memory.total)}: "
            + ", ".join(f"{name} {_bytes(size)}" for name, size in parts),
        ),
        ("checkpoint", f"about {_bytes(estimates.checkpoint_bytes)}"),
    ]


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("TB", 1000 * GB), ("GB", GB), ("MB", 10**6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1000:.0f} kB"
