"""What a user asks a sweep for, checked as far as that needs no configuration. Pure.

The points of a sweep: every combination at every node count, and the order they run in. Pure.

How the user's configuration becomes a run for timing: overrides on top of theirs. Pure.

    step 1 .. warmup | .. warmup + timed | save | SAVED_STEPS more, with the save beside them | save

So saves cost no timed step, and what one costs is measured apart.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitrain.config import RunConfig
from submitrain.errors import UserError
from submitrain.launcher.sweeps.scaling import Mode

if TYPE_CHECKING:
    from submitrain.config import RunConfig


Combination = tuple[tuple[str, str], ...]
"""Key and value of each grid key, as an override writes them."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep; its run is launched under the name ``id``."""

    id: str
    nodes: int
    """Nodes that train; of a range, its upper end."""
    repeat: int
    combination: Combination
    overrides: tuple[str, ...]
    """On top of the sweep's own configuration."""
    digest: str
    """Of the run's configuration: equal for repeats."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "combination": dict(self.combination)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Point:
        """Read back what ``as_json`` gave."""
        plain = {**value, "overrides": tuple(value["overrides"])}
        return cls(**{**plain, "combination": tuple(value["combination"].items())})


def combinations(grid: Sequence[tuple[str, Sequence[str]]]) -> Iterator[Combination]:
    """Every combination of the grid's values; one empty combination without a grid."""
    keys = [key for key, _ in grid]
    for values in itertools.product(*(values for _, values in grid)):
        yield tuple(zip(keys, values, strict=True))


def label(combination: Combination) -> str:
    """``lr=1e-4 seed=7``: the last part of each key."""
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in combination)


def in_blocks(configurations: Sequence[Point], repeats: int, seed: str) -> list[Point]:
    """Every configuration ``repeats`` times, each repeat a block in an order of its own.

    Whatever drifts while the sweep runs (neighbours, temperature) so strikes all alike.
    """
    order = random.Random(seed)
    points = []
    for repeat in range(1, repeats + 1):
        block = [
            Point(
                id=f"{one.id}-r{repeat}",
                nodes=one.nodes,
                repeat=repeat,
                combination=one.combination,
                overrides=one.overrides,
                digest=one.digest,
            )
            for one in configurations
        ]
        order.shuffle(block)
        points += block
    return points


WARMUP_STEPS, TIMED_STEPS, REPEATS = 20, 50, 3
AT_ONCE = 4
_PRICE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]{3})?")


@dataclass(frozen=True)
class Request:
    """One sweep as asked for; None = the default, or not asked for."""

    source: str | Path | Mapping[str, Any] | RunConfig
    overrides: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    cluster: str | None = None
    nodes: tuple[int, ...] | None = None
    """Node counts; None = no scaling: runs of the configured length."""
    mode: Mode | None = None
    grid: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Keys and their values, as overrides write them."""
    repeats: int | None = None
    steps: int | None = None
    """Timed steps with ``nodes``, else the length of each run."""
    warmup: int | None = None
    tokens: float | None = None
    """Length of the training whose duration is to be told."""
    price: float | None = None
    currency: str = ""
    at_once: int | None = None
    """Jobs on Slurm at the same time; None = ``AT_ONCE``."""

    @property
    def scaling(self) -> bool:
        """Whether node counts are compared: the runs are then shaped for timing."""
        return self.nodes is not None


def check(request: Request) -> None:
    """Refuse what no configuration could make right.

    Raises:
        UserError: one line for every problem.
    """
    if problems := list(_problems(request)):
        raise UserError("\n".join(problems))


def _problems(request: Request) -> Iterator[str]:
    if request.nodes is None and not request.grid:
        yield "sweep: expected --nodes 1,2,4 or --grid key=a,b, got neither; give one or both"
    if request.nodes is not None:
        yield from _node_problems(request.nodes)
    for name in ("mode", "price", "tokens"):
        if request.nodes is None and getattr(request, name) is not None:
            yield f"--{name}: expected --nodes with it, got none; it has no effect on a grid alone"
    if request.mode not in (None, "strong", "weak"):
        yield (
            "--mode: expected strong (fixed global batch) or weak (fixed local batch), got "
            f"{request.mode!r}"
        )
    least = {"repeats": 1, "steps": 2, "warmup": 0, "at_once": 1, "tokens": 1}
    for name, minimum in least.items():
        value = getattr(request, name)
        if value is not None and value < minimum:
            unit = " jobs" if name == "at_once" else ""
            yield f"--{name.replace('_', '-')}: expected {minimum}{unit} or more, got {value:g}"
    if request.price is not None and not (math.isfinite(request.price) and request.price > 0):
        yield f"--price: expected an amount above 0 such as 2.10, got {request.price:g}"
    yield from _grid_problems(request.grid)


def _node_problems(nodes: Sequence[int]) -> Iterator[str]:
    if not nodes:
        yield "--nodes: expected node counts such as 1,2,4, got none"
    if small := [one for one in nodes if one < 1]:
        yield f"--nodes: expected integers >= 1 such as 1,2,4, got {small[0]}"
    if twice := sorted({one for one in nodes if nodes.count(one) > 1}):
        yield (
            f"--nodes: expected each node count once, got {twice[0]} "
            f"{nodes.count(twice[0])} times; write --repeats to measure it more often"
        )


def _grid_problems(grid: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    keys = [key for key, _ in grid]
    for key, values in grid:
        if keys.count(key) > 1 and key in keys[: keys.index(key) + 1]:
            yield f"--grid {key}: expected each key once, got it twice; write {key}=a,b,c"
            break
        if key in ("slurm.nodes", "nodes"):
            yield f"--grid {key}: expected other keys, got the node count; write --nodes 1,2,4"
        if any(not value for value in values):
            yield f"--grid {key}: expected values between the commas, got an empty one; none unsets"


def parse_nodes(text: str) -> tuple[int, ...]:
    """``1,2,4``

    Raises:
        UserError: a part is no whole number.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip() or "," in text)
    except ValueError as error:
        raise UserError(f"--nodes: expected node counts such as 1,2,4, got {text!r}") from error


def parse_grid(words: Iterable[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """``optimizer.lr=1e-4,3e-4`` each; commas inside brackets or quotes divide nothing.

    Raises:
        UserError: a word without a key or without values.
    """
    found = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise UserError(
                f"--grid: expected key=a,b such as optimizer.lr=1e-4,3e-4, got {word!r}"
            )
        found.append((key.strip(), tuple(split_values(text))))
    return tuple(found)


def grid_of(grid: Mapping[str, Sequence[Any]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The same from Python: ``{"optimizer.lr": [1e-4, 3e-4]}``.

    Raises:
        UserError: values that are no list, or no plain data.
    """
    found = []
    for key, values in grid.items():
        if isinstance(values, str | bytes) or not isinstance(values, Sequence) or not values:
            raise UserError(f"grid[{key!r}]: expected a list of values, got {values!r}")
        try:
            found.append((key, tuple(json.dumps(value) for value in values)))
        except TypeError as error:
            raise UserError(f"grid[{key!r}]: expected plain values, got {values!r}") from error
    return tuple(found)


def split_values(text: str) -> Iterator[str]:
    """Values between commas that stand outside of brackets and quotes."""
    depth, quote, begin = 0, "", 0
    for index, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[begin:index].strip()
            begin = index + 1
    yield text[begin:].strip()


def parse_price(text: str) -> tuple[float, str]:
    """``2.10`` or ``2.10EUR``: amount and currency.

    Raises:
        UserError: it is neither.
    """
    match = _PRICE.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"--price: expected the price of a GPU (or rank) hour such as 2.10 or 2.10EUR, "
            f"got {text!r}"
        )
    return float(match[1]), (match[2] or "").upper()


SAVED_STEPS = 10
"""Steps after the timed ones, beside a save in the background."""
FREE = "rm -rf checkpoints/step-*"
"""Hook of a timing run that finished, in its folder: nobody goes on from it."""


@dataclass(frozen=True)
class Shape:
    """The length of a timing run in optimizer steps."""

    warmup: int
    timed: int

    @property
    def measured(self) -> int:
        """The last step that is timed."""
        return self.warmup + self.timed

    def total(self, config: RunConfig) -> int:
        """All steps of a run; none after the timed ones where it never saves."""
        return self.measured + (SAVED_STEPS if config.checkpoint.enabled else 0)


def timing_overrides(config: RunConfig, nodes: int, mode: Mode, shape: Shape) -> tuple[str, ...]:
    """What a point at ``nodes`` changes in ``config``, the user's with the grid's values."""
    total = shape.total(config)
    changes: dict[str, object] = {
        "slurm.nodes": nodes,
        "slurm.spare_nodes": 0,
        **_batch(config, mode),
        "step_scheduler.max_steps": total,
        "step_scheduler.num_epochs": "none",
        "step_scheduler.ckpt_every_steps": shape.measured if config.checkpoint.enabled else "none",
        "step_scheduler.val_every_steps": "none",
        "validation_dataset": "none",
        "validation_dataloader": "none",
        "sample": "none",
        "logging.log_every_steps": 1,
        "on_success": FREE if config.checkpoint.enabled else "none",
        "on_failure": "none",
    }
    if config.checkpoint.enabled:
        changes["checkpoint.save_consolidated"] = "never"
        changes["checkpoint.keep_last_n_checkpoints"] = 1
    if config.distributed.dp_size is not None:
        changes["distributed.dp_size"] = "none"
    if config.wandb is not None:
        changes["wandb.enabled"] = "false"
    if config.warmup_steps > total:
        key = "step_scheduler" if config.step_scheduler.warmup_steps else "lr_scheduler.lr"
        changes[f"{key}{'.' if key == 'step_scheduler' else '_'}warmup_steps"] = total
    return tuple(f"{key}={value}" for key, value in changes.items())


def _batch(config: RunConfig, mode: Mode) -> dict[str, object]:
    """Strong: the global batch stays, accumulation follows. Weak: what one rank does stays."""
    arithmetic = config.batch()
    if mode == "strong":
        sizes: dict[str, object] = {"global": arithmetic.global_size, "accumulation": "none"}
    else:
        sizes = {"global": "none", "accumulation": arithmetic.accumulation}
    return {
        "step_scheduler.global_batch_size": sizes["global"],
        "step_scheduler.grad_acc_steps": sizes["accumulation"],
    }


def global_batch(config: RunConfig, nodes: int, mode: Mode) -> int:
    """Sequences of a step at ``nodes``."""
    arithmetic = config.batch()
    if mode == "strong":
        return arithmetic.global_size
    world = nodes * config.slurm.ntasks_per_node
    return arithmetic.local_size * arithmetic.accumulation * world


def indivisible(config: RunConfig, nodes: int, mode: Mode) -> str | None:
    """Why the batch does not come out even at ``nodes``, with the arithmetic; None when it does."""
    arithmetic = config.batch()
    if mode == "weak":
        return None
    per_node = arithmetic.local_size * config.slurm.ntasks_per_node
    together, total = per_node * nodes, arithmetic.global_size
    if total % together == 0:
        return None
    fitting = [n for n in range(1, 4 * nodes + 1) if total % (per_node * n) == 0]
    choice = (
        f"choose nodes from {', '.join(map(str, fitting))}"
        if fitting
        else (f"make it a multiple of {per_node} (step_scheduler.global_batch_size)")
    )
    return (
        f"--nodes {nodes}: strong scaling keeps the global batch of {total} sequences, and local "
        f"batch {arithmetic.local_size} x {nodes * config.slurm.ntasks_per_node} ranks = {together}"
        f" does not divide it ({total} / {together} = {total / together:.2f} micro-batches); "
        f"{choice}, or write --mode weak"
    )


def set_by_timing(overrides: tuple[str, ...]) -> frozenset[str]:
    """Keys that a timing run sets itself, so that a grid over them would have no effect."""
    return frozenset(text.partition("=")[0] for text in overrides) - {
        "step_scheduler.global_batch_size",
        "step_scheduler.grad_acc_steps",
    }
