"""The points of a sweep: every combination at every node count, and the order they run in. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
