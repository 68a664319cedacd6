"""What a sweep's report says, on the terminal, on its page and in a notebook."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from rich.console import Console

from submitrain.launcher.sweeps.folder import PointState, SweepState
from submitrain.launcher.sweeps.measure import Measurement, SaveCosts
from submitrain.launcher.sweeps.render import amount, report_parts, sweep_page
from submitrain.launcher.sweeps.report import PointReport, Series, SweepReport
from submitrain.launcher.sweeps.request import Combination, Point
from submitrain.launcher.sweeps.scaling import Estimate, Terms, curve_of
from submitrain.status import RunState, RunStatus
from tests.unit.monitor.test_report import check_page

NODES = (1, 2, 4, 8)


def point_report(combination: Combination, nodes: int, repeat: int, speed: float) -> PointReport:
    """A finished run; the last repeat at the most nodes has failed."""
    failed = (nodes, repeat) == (8, 3)
    point = Point(f"n{nodes}-r{repeat}-{combination[0][1]}", nodes, repeat, combination, (), "d")
    state = RunState.FAILED if failed else RunState.FINISHED
    status = RunStatus(
        *("id", "/r", state, "a<b", "slurm", ("17",), 1, 80, 80, 1.0, 1.0, 1e-4, 1.0, None),
        *(1.0, 1.0, (), False),
    )
    losses = tuple((step, 6 / step) for step in range(1, 9))
    found = Measurement(
        *(50, 50 * 8192 / speed, 50 * 8192, 1, 20.5, SaveCosts(1, 2.5, 1.0, 3.0, 10)),
        *(losses, 1.5, 12.0, int(nodes == 4), nodes, 1),
    )
    newest = PointState(point, (Path("/r"),), status)
    return PointReport(newest, found, "has not finished" if failed else "", int(failed))


def report_of(**changes: Any) -> SweepReport:
    """Two learning rates at four node counts, three repeats each; all nodes are one machine."""
    noise, series = random.Random(3), []
    for value in ("1e-4", "3<e-4"):
        combination = (("optimizer.lr", value),)
        points = tuple(
            point_report(combination, nodes, repeat, speed * noise.gauss(1, 0.003))
            for nodes in NODES
            for repeat in (1, 2, 3)
            if (speed := 1000 * nodes * (1 - 0.03 * nodes))
        )
        repeats: dict[int, list[Measurement]] = {}
        for one in points:
            if not one.unused:
                repeats.setdefault(one.point.nodes, []).append(one.measured)
        terms = Terms(
            *("strong", dict.fromkeys(NODES, 64), None, 10_000, 64, 100),
            price=2.1,
            units_per_node=8,
        )
        series.append(Series(combination, points, curve_of(repeats, terms)))
    goal_record = {"tokens": None, "steps": 10_000, "global_batch": 64, "save_every_steps": 100}
    record = {
        "name": "swe<ep",
        "created_at": 1.8e9,
        "cluster": "slurm",
        "mode": "strong",
        "nodes": list(NODES),
        "grid": {"optimizer.lr": ["1e-4", "3<e-4"]},
        "repeats": 3,
        "warmup_steps": 20,
        "timed_steps": 50,
        "price": 2.1,
        "currency": "EUR",
        "ranks_per_node": 8,
        "gpus_per_node": 8,
        "notes": ["a <note>"],
        "goal": goal_record,
        "points": [point.point.as_json() for one in series for point in one.points],
    }
    return SweepReport("/runs/s", {**record, **changes}, SweepState.INCOMPLETE, tuple(series))


def printed(report: SweepReport) -> str:
    console = Console(width=220, color_system=None)
    with console.capture() as capture:
        for part in report_parts(report):
            console.print(part, markup=False)
    return capture.get()


def test_terminal_page_and_notebook_say_the_same() -> None:
    report = report_of()
    shown = printed(report), sweep_page(report), report._repr_html_()
    for word in (
        "strong scaling (fixed global batch), 20 warm-up and 50 timed steps, 3 repeats",
        "2.1 EUR per GPU and hour",
        "EUR per million tokens",
        "8 nodes were 1 machine, and shared its cores",
        "Not complete yet: emulated, not performance: take 4 nodes",
        "good enough",
        "no: efficiency may be under 0.90",
        "10,000 steps of 64 sequences, computed from these speeds",
        "fitted, not measured: step =",
        "1 failed run",
        "6 h 31 min",
        "0.7500",
    ):
        assert all(word in text for text in shown), word
    assert check_page(shown[1]) >= {"svg", "table", "details"}
    assert shown[1].count("<svg") == 2 * 3 + 1
    assert "swe&lt;ep" in shown[1] and "a &lt;note&gt;" in shown[1] and "3&lt;e-4" in shown[1]
    assert "<b>4</b>" in shown[1], "the recommended node count"
    assert "longest in queue" in shown[1]


def test_a_grid_alone_shows_the_result_of_each_run_and_no_scaling() -> None:
    report = report_of(mode=None, price=None)
    page = sweep_page(report)
    check_page(page)
    assert "marginal gain" not in page.lower()
    assert "Result of each run" in page
    assert "Training loss by step" in page
    assert "tokens/s" in printed(report)


def test_numbers_are_written_for_people() -> None:
    assert [amount(None), amount(Estimate(1234.4, 1222.4, 1246.4))] == ["–", "1,234 ± 12"]
    assert amount(Estimate(1.86, 0.94, 13.0), 2) == "1.86 (0.94 to 13.00)"
    assert amount(Estimate(0.001234)) == "0.00123"
