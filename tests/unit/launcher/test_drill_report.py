"""What a drill's report says, on the terminal and on its page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from submitrain.attempts import Action, Attempt, Cause
from submitrain.config import RunConfig
from submitrain.launcher.drill.compare import Comparison, Recovery
from submitrain.launcher.drill.plan import DrillPlan
from submitrain.launcher.drill.report import (
    HTML_NAME,
    JSON_NAME,
    Report,
    drill_page,
    report_parts,
)
from submitrain.launcher.drill.result import UNDISTURBED, Injection, Outcome, judged
from submitrain.launcher.drill.scenarios import CATALOGUE, Place, Steps


def attempt(
    number: int,
    cause: Cause,
    action: Action,
    steps: tuple[int, int],
    times: tuple[float, float, float],
    why: str,
) -> Attempt:
    started, noticed, ended = times
    return Attempt(
        number, "7", cause, action, *steps, started, ended, why, world_size=2, noticed_at=noticed
    )


KILL = next(one for one in CATALOGUE if one.id == "kill")
HIT = Injection("kill at step", 102.0, 3, 1, 1, "node2")
RECOVERY = Recovery(
    attempt=1,
    cause="rank_died",
    action="restart",
    began=102.0,
    total_s=7.5,
    seconds={"noticed": 0.5, "imports": 4.0, "first_step": 3.0},
    reached=2,
    resumed=1,
)
CALM = Outcome(
    id=UNDISTURBED,
    what="nothing happens",
    folder="/runs/undisturbed",
    state="finished",
    why="",
    duration_s=9.0,
    injections=(),
    attempts=(
        attempt(1, Cause.FINISHED, Action.DONE, (0, 4), (90.0, 99.0, 100.0), "all finished"),
    ),
    recoveries=(),
    rejected=(),
    comparison=None,
    losses=((1, 3.0), (2, 2.5), (3, 2.25), (4, 2.0)),
    ok=True,
    result="finished",
)
KILLED = replace(
    CALM,
    id="kill",
    what=KILL.what,
    folder="/runs/<kill>",
    injections=(HIT,),
    attempts=(
        attempt(
            1, Cause.RANK_DIED, Action.RESTART, (0, 2), (101.0, 102.5, 103.0), "rank 1: <SIGKILL>"
        ),
        attempt(2, Cause.FINISHED, Action.DONE, (1, 4), (103.0, 119.0, 120.0), "all finished"),
    ),
    recoveries=(RECOVERY,),
    rejected=("step-00000002: size differs",),
    comparison=Comparison(4),
)
DIFFERENT = Comparison(4, different=(3,), largest_relative=1e-3)


def report_of(*outcomes: Outcome, folder: Path = Path("/runs/drill-1")) -> Report:
    """A finished report."""
    place = Place("local", RunConfig.model_validate({"slurm": {"ntasks_per_node": 2}}))
    plan = DrillPlan(
        source="cfg<1>.yaml",
        overrides=("optimizer.lr=1e-4", "step_scheduler.max_steps=8"),
        warnings=("the model keeps its size",),
        place=place,
        steps=Steps.of(8),
        scenarios=(KILL,),
        runs_dir=Path("/runs"),
        cluster_reason="asked for",
    )
    judgements = [judged(o, KILL if o.id == "kill" else None, control=None) for o in outcomes]
    return Report(plan, folder, 80.0, judgements, ended_at=130.0)


def printed(report: Report) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        for part in report_parts(report):
            console.print(part)
    return capture.get()


def test_the_terminal_shows_what_struck_what_it_cost_and_whether_the_curve_held() -> None:
    text = printed(report_of(CALM, KILLED))
    line = next(line for line in text.splitlines() if "kill" in line)
    for word in ("✓", "step 3, rank 1 on node2", "rank_died", "restart", "7.5 s", "bit for bit"):
        assert word in line
    assert [line.split() for line in text.splitlines() if line.startswith("imports")] == [
        ["imports", "4.00"]
    ]
    assert "The fault ended as promised" in text


def test_the_terminal_says_what_to_do_about_a_failure() -> None:
    failed = replace(KILLED, state="failed", why="crash loop", comparison=DIFFERENT)
    text = printed(report_of(CALM, failed))
    assert "kill: did not come back: failed (crash loop)" in text
    assert "python -m monitor diagnose /runs/<kill>" in text
    assert "1 of 1 faults did not end as promised: kill." in text


def test_the_page_tells_the_same_and_escapes_what_it_did_not_write() -> None:
    page = drill_page(report_of(CALM, KILLED))
    assert "cfg&lt;1&gt;.yaml" in page
    assert "rank 1: &lt;SIGKILL&gt;" in page
    assert "<SIGKILL>" not in page
    assert 'class="result good"' in page
    assert "kill at step, step 3" in page, "the mark in the chart says what struck"
    assert "the model keeps its size" in page
    assert "checkpoint refused: step-00000002: size differs" in page
    assert "optimizer.lr=1e-4\nstep_scheduler.max_steps=8" in page
    assert page.count("<svg") == 2


def test_a_page_of_a_drill_that_came_to_nothing_has_no_charts() -> None:
    page = drill_page(report_of(replace(CALM, state="failed", why="no disk", losses=())))
    assert "<svg" not in page
    assert 'class="result bad"' in page
    assert "No result" in page


def test_both_files_are_written_and_the_numbers_survive_json(tmp_path: Path) -> None:
    odd = replace(
        KILLED,
        losses=((1, float("nan")),),
        comparison=replace(DIFFERENT, largest_relative=float("inf")),
    )
    report = report_of(CALM, odd, folder=tmp_path)
    report.write()
    found = json.loads((tmp_path / JSON_NAME).read_text(), parse_constant=lambda word: 1 / 0)
    assert found["runs"][1]["losses"] == [[1, "nan"]]
    assert found["runs"][1]["comparison"]["largest_relative"] == "inf"
    assert found["runs"][1]["recoveries"][0]["lost_steps"] == 1
    assert found["ok"] is False
    assert (tmp_path / HTML_NAME).read_text() == drill_page(report)
