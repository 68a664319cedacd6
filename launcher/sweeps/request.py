"""What a user asks a sweep for, read and checked as far as that needs no configuration. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitrain.errors import UserError

if TYPE_CHECKING:
    from submitrain.config import RunConfig
    from submitrain.launcher.sweeps.scaling import Mode

WARMUP_STEPS, TIMED_STEPS, REPEATS = 20, 50, 3
AT_ONCE = 4
_PRICE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]{3})?")

Grid = tuple[tuple[str, tuple[str, ...]], ...]
"""Keys and their values, as overrides write them."""
Combination = tuple[tuple[str, str], ...]
"""One value of each key."""


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


def label(combination: Combination) -> str:
    """``lr=1e-4 seed=7``: the last part of each key."""
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in combination)


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
    grid: Grid = ()
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

    def check(self) -> None:
        """Refuse what no configuration could make right.

        Raises:
            UserError: one line for every problem.
        """
        if problems := list(_problems(self)):
            raise UserError("\n".join(problems))


def _problems(request: Request) -> Iterator[str]:
    nodes, keys = request.nodes, [key for key, _ in request.grid]
    if nodes is None and not request.grid:
        yield "sweep: expected --nodes 1,2,4 or --grid key=a,b, got neither; give one or both"
    if nodes == ():
        yield "--nodes: expected node counts such as 1,2,4, got none"
    if small := [one for one in nodes or () if one < 1]:
        yield f"--nodes: expected integers >= 1 such as 1,2,4, got {small[0]}"
    if nodes and (twice := sorted({one for one in nodes if nodes.count(one) > 1})):
        yield (
            f"--nodes: expected each node count once, got {twice[0]} "
            f"{nodes.count(twice[0])} times; write --repeats to measure it more often"
        )
    for name in ("mode", "price", "tokens"):
        if nodes is None and getattr(request, name) is not None:
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
    for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
        yield f"--grid {key}: expected each key once, got it twice; write {key}=a,b,c"
    for key, values in request.grid:
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


def parse_grid(words: Iterable[str]) -> Grid:
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


def grid_of(grid: Mapping[str, Sequence[Any]]) -> Grid:
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
