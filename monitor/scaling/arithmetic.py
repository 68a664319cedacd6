"""The formulas of scaling, each with its source. Pure; plain numbers.

N nodes do T(N) tokens per second; N0 is the smallest N that was measured.
"""

from __future__ import annotations

PER_HOUR_S = 3600.0
MILLION = 1e6


def weak_efficiency(
    base_nodes: int, base_tokens_per_s: float, nodes: int, tokens_per_s: float
) -> float:
    """``(T(N)/N) / (T(N0)/N0)``: the local batch is fixed, so the work grows with the nodes.

    Source: Gustafson, Reevaluating Amdahl's Law, doi:10.1145/42411.42415.
    """
    return (tokens_per_s / nodes) / (base_tokens_per_s / base_nodes)


def strong_efficiency(base_nodes: int, base_s: float, nodes: int, seconds: float) -> float:
    """``N0 t(N0) / (N t(N))``: the same work in t seconds on more nodes.

    24 h on one node and 6 h on four are 1.00. Source: Amdahl, doi:10.1145/1465482.1465560.
    """
    return base_nodes * base_s / (nodes * seconds)


def marginal_gain(
    base: tuple[int, float], before: tuple[int, float], after: tuple[int, float]
) -> float:
    """``(T2 - T1) / ((N2 - N1) T(N0)/N0)``: what the nodes added last bring, as a share of what as
    many nodes bring at N0. Each argument is (nodes, tokens per second)."""
    (n0, t0), (n1, t1), (n2, t2) = base, before, after
    return (t2 - t1) / ((n2 - n1) * t0 / n0)


def price_per_million_tokens(
    *, nodes: int, units_per_node: int, per_unit_hour: float, tokens_per_s: float
) -> float:
    """``N g price 1e6 / (3600 T)``, g units (GPUs, or ranks where there are none) in each node."""
    return nodes * units_per_node * per_unit_hour * MILLION / (PER_HOUR_S * tokens_per_s)


def time_to_result_s(
    *,
    tokens: float,
    tokens_per_s: float,
    startup_s: float = 0.0,
    saves: float = 0.0,
    save_s: float = 0.0,
) -> float:
    """Seconds from the start of the job until ``tokens`` are trained; the queue is not in it."""
    return startup_s + tokens / tokens_per_s + saves * save_s


def fit_step_time(points: list[tuple[int, float]]) -> tuple[float, float] | None:
    """``(c, f)`` of ``step_s = c / N + f`` by least squares of relative errors; of a strong curve.

    ``c`` shrinks with the nodes, ``f`` does not. None below three node counts (two leave no rest by
    which the fit could be doubted), or where it comes out negative.
    """
    if len({nodes for nodes, _ in points}) < 3:
        return None
    weights = [1.0 / seconds**2 for _, seconds in points]
    total = sum(weights)
    x_mean = sum(w / n for w, (n, _) in zip(weights, points, strict=True)) / total
    y_mean = sum(w * s for w, (_, s) in zip(weights, points, strict=True)) / total
    spread = sum(w * (1 / n - x_mean) ** 2 for w, (n, _) in zip(weights, points, strict=True))
    joint = sum(
        w * (1 / n - x_mean) * (s - y_mean) for w, (n, s) in zip(weights, points, strict=True)
    )
    compute = joint / spread
    fixed = y_mean - compute * x_mean
    return (compute, fixed) if compute >= 0 and fixed >= 0 else None
