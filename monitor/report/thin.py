"""Long curves with few points, no peak lost. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_POINTS = 2000

Point = tuple[float, float]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points in order: of each stretch the lowest and the highest.

    First and last point stay. Points that are not finite are left out of a curve that is thinned.
    """
    if len(points) <= most:
        return list(points)
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) <= most:
        return finite
    inner, stretches = finite[1:-1], max(1, (most - 2) // 2)
    kept = [finite[0]]
    for number in range(stretches):
        start, end = (len(inner) * edge // stretches for edge in (number, number + 1))
        indices = range(start, end)
        if not indices:
            continue
        extremes = {
            min(indices, key=lambda index: inner[index][1]),
            max(indices, key=lambda index: inner[index][1]),
        }
        kept += [inner[index] for index in sorted(extremes)]
    return [*kept, finite[-1]]
