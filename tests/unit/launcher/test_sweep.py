"""What a sweep will do is worked out and checked for all of its points before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from submitrain.errors import UserError
from submitrain.launcher import Run, Sweep, launch, sweep
from submitrain.launcher.cli.main import main
from submitrain.launcher.sweeps.folder import make_sweep
from submitrain.launcher.sweeps.plan import SweepPlan, in_blocks, plan_sweep
from submitrain.launcher.sweeps.request import Point, parse_grid, split_values
from submitrain.launcher.sweeps.sweep import request_of
from tests.tiny import tiny_config


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with ``cfg.yaml``: two ranks a node, a global batch of 2 x 2 x 2 = 8."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path, cluster="local", runs_dir="runs")
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def planned(nodes: list[int] | None = None, **options: Any) -> SweepPlan:
    return plan_sweep(request_of("cfg.yaml", nodes, {"cluster": "local", **options}))  # type: ignore[typeddict-item]


def settings(point: Point) -> dict[str, str]:
    pairs = (text.partition("=") for text in point.overrides)
    return {key: value for key, _, value in pairs}


BAD = {
    "nothing to sweep": ([], "--nodes 1,2,4 or --grid"),
    "zero nodes": (["--nodes", "0"], "--nodes: expected integers >= 1 such as 1,2,4, got 0"),
    "negative nodes": (["--nodes=-1,2"], "got -1"),
    "nodes twice": (["--nodes", "1,2,1"], "expected each node count once, got 1 2 times"),
    "nodes that are words": (["--nodes", "one"], "got 'one'"),
    "nodes with a hole": (["--nodes", "1,,2"], "got '1,,2'"),
    "no repeats": (["--nodes", "1", "--repeats", "0"], "--repeats: expected 1 or more, got 0"),
    "one step": (["--nodes", "1", "--steps", "1"], "--steps: expected 2 or more"),
    "negative warm-up": (["--nodes", "1", "--warmup", "-1"], "--warmup: expected 0 or more"),
    "no jobs": (["--nodes", "1", "--at-once", "0"], "--at-once: expected 1 jobs or more"),
    "price in words": (["--nodes", "1", "--price", "cheap"], "--price: expected the price"),
    "price of nothing": (["--nodes", "1", "--price", "0"], "--price: expected an amount above 0"),
    "no tokens": (["--nodes", "1", "--tokens", "0"], "--tokens: expected 1 or more"),
    "page nobody would write": (
        ["--nodes", "1", "--detach", "--html", "x.html"],
        "--html: expected --wait",
    ),
    "page in no folder": (["--nodes", "1", "--html", "no/x.html"], "--html: expected a file"),
    "runs folder": (["--nodes", "1", "--runs-dir", "x"], "write runs_dir=x"),
    "jobs at once without Slurm": (["--nodes", "1", "--at-once", "2"], "--at-once: expected Slurm"),
    "price of a grid": (["--price", "1", "--grid", "seed=1,2"], "--price: expected --nodes"),
    "mode without nodes": (["--mode", "weak", "--grid", "seed=1,2"], "--mode: expected --nodes"),
    "indivisible batch": (
        ["--nodes", "1,2,3"],
        "--nodes 3: strong scaling keeps the global batch of 8 sequences, and local batch 2 x 6 "
        "ranks = 12 does not divide it (8 / 12 = 0.67 micro-batches); choose nodes from 1, 2",
    ),
    "unknown grid key": (
        ["--grid", "optimizer.learning_rat=1,2"],
        "optimizer.learning_rat: torch.optim.AdamW takes no such argument",
    ),
    "misspelt grid section": (["--grid", "optimzer.lr=1,2"], "did you mean optimizer?"),
    "misspelt grid key": (
        ["--grid", "step_scheduler.max_step=3,4"],
        "did you mean step_scheduler.max_steps?",
    ),
    "bad grid value": (["--grid", "optimizer.lr=1e-4,-1"], "optimizer.lr: expected"),
    "grid without values": (["--grid", "optimizer.lr"], "--grid: expected key=a,b"),
    "grid with a hole": (["--grid", "optimizer.lr=1e-4,,3e-4"], "got an empty one"),
    "grid over nodes": (["--grid", "slurm.nodes=1,2"], "write --nodes 1,2,4"),
    "grid key twice": (["--grid", "seed=1,2", "seed=3"], "expected each key once"),
    "grid over what timing sets": (
        ["--nodes", "1", "--grid", "step_scheduler.max_steps=5,6"],
        "one that it sets itself",
    ),
    "unknown override": (["--nodes", "1", "slurm.nodse=1"], "did you mean"),
}


@pytest.mark.parametrize(("arguments", "named"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line_exit_code_2_and_leaves_nothing(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    before = sorted(path.name for path in project.iterdir())
    assert main(["sweep", "cfg.yaml", *arguments]) == 2
    out, err = capsys.readouterr()
    [line] = [one for one in err.splitlines() if one]
    assert line.startswith("error: ")
    assert named in line
    assert out == ""
    assert sorted(path.name for path in project.iterdir()) == before


BAD_SWEEPS = {
    "no such sweep": ("nothing", "expected the folder or name of one sweep, got nothing"),
    "a folder without a sweep": (".", "there is no sweep.json in it"),
    "a run's folder": ("a-run", "a run: see `python -m launcher status`"),
    "a broken record": ("broken", "expected the record of a sweep"),
    "a record of something else": ("other", "expected the record of a sweep"),
}


@pytest.mark.parametrize("act", ["status", "report", "cancel", "resume"])
@pytest.mark.parametrize(("name", "named"), BAD_SWEEPS.values(), ids=BAD_SWEEPS)
def test_what_is_no_sweep_is_one_clear_line(
    project: Path, capsys: pytest.CaptureFixture[str], act: str, name: str, named: str
) -> None:
    for folder, file, text in (
        ("a-run", "record.json", "{}"),
        ("broken", "sweep.json", "{"),
        ("other", "sweep.json", '{"kind": "run", "points": []}'),
    ):
        (project / folder).mkdir()
        (project / folder / file).write_text(text)
    assert main(["sweep", act, name]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["status"], "expected one SWEEP"),
        (["cancel", "a", "b"], "expected one SWEEP"),
        (["resume", "latest", "--nodes", "1"], "expected no --nodes"),
        (["status", "latest", "--wait"], "expected no --wait, which changes nothing"),
        (["cancel", "latest", "--html", "x"], "expected no --html, which changes nothing"),
    ],
)
def test_acts_take_a_sweep_and_nothing_that_starts_one(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(["sweep", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_every_indivisible_point_is_named_at_once(project: Path) -> None:
    with pytest.raises(UserError) as caught:
        planned([1, 3, 5], grid={"dataloader.batch_size": [2, 4]})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["--nodes 3", "--nodes 5"] * 2
    assert lines[0].endswith("(batch_size=2)")


def test_strong_keeps_the_global_batch_and_weak_that_of_a_rank(project: Path) -> None:
    strong, weak = planned([1, 2], repeats=1), planned([1, 2], repeats=1, mode="weak")
    assert {p.id: strong.global_batches[p.id] for p in strong.points} == {"n1-r1": 8, "n2-r1": 8}
    assert {p.id: weak.global_batches[p.id] for p in weak.points} == {"n1-r1": 8, "n2-r1": 16}
    [two] = [settings(point) for point in strong.points if point.nodes == 2]
    assert two["step_scheduler.global_batch_size"] == "8"
    assert two["step_scheduler.grad_acc_steps"] == "none"
    [two] = [settings(point) for point in weak.points if point.nodes == 2]
    assert two["step_scheduler.global_batch_size"] == "none"
    assert two["step_scheduler.grad_acc_steps"] == "2"


def test_saves_come_after_the_timed_steps_and_validation_does_not_come(project: Path) -> None:
    [point] = planned([2], repeats=1).points
    found = settings(point)
    assert found["step_scheduler.ckpt_every_steps"] == "70", "20 to warm up, 50 timed"
    assert found["step_scheduler.max_steps"] == "80"
    assert found["validation_dataset"] == "none"
    never = planned([2], repeats=1, overrides=["checkpoint.enabled=false"])
    assert settings(never.points[0])["step_scheduler.max_steps"] == "70"


def test_each_repeat_is_a_shuffled_block_of_all_points(project: Path) -> None:
    plan = planned([1, 2, 4], mode="weak")
    blocks = [[point.nodes for point in plan.points[i : i + 3]] for i in (0, 3, 6)]
    assert [sorted(block) for block in blocks] == [[1, 2, 4]] * 3
    assert plan.points == planned([1, 2, 4], mode="weak").points, "the same order every time"
    orders = {tuple(p.id for p in in_blocks(plan.points[:3], 3, seed)) for seed in "abcdef"}
    assert len(orders) > 1, "another configuration, another order"


def test_equal_configurations_run_once_and_repeats_share_a_digest(project: Path) -> None:
    plan = planned(grid={"optimizer.lr": ["1e-3", 0.001, 0.002]}, repeats=2)
    assert len(plan.points) == 4
    assert len({point.digest for point in plan.points}) == 2
    assert "c2 (lr=0.001) is the same configuration as c1" in plan.found.notes[0]


def test_a_grid_alone_trains_as_configured(project: Path) -> None:
    plan = planned(grid={"optimizer.lr": [1e-3, 2e-3], "seed": [1, 2, 3]})
    assert (len(plan.points), plan.mode, plan.repeats) == (6, None, 1)
    assert set(settings(plan.points[0])) == {"optimizer.lr", "seed"}
    shorter = planned(grid={"seed": [1, 2]}, steps=7)
    assert settings(shorter.points[0])["step_scheduler.max_steps"] == "7"


def test_values_are_split_at_commas_outside_of_brackets_and_quotes() -> None:
    text = "[0.9, 0.95],{a: 1, b: 2},'x,y',none"
    assert list(split_values(text)) == ["[0.9, 0.95]", "{a: 1, b: 2}", "'x,y'", "none"]
    assert parse_grid(["optimizer.betas=[0.9, 0.95],[0.9, 0.99]"]) == (
        ("optimizer.betas", ("[0.9, 0.95]", "[0.9, 0.99]")),
    )


def test_the_folder_holds_all_that_a_later_resume_needs(project: Path) -> None:
    plan = planned([1, 2], price="2.10EUR", overrides=["optimizer.lr=2e-3"])
    made = Sweep(make_sweep(plan))
    assert made.points == plan.points
    record = json.loads((made.folder / "sweep.json").read_text())
    assert (record["price"], record["currency"], record["workdir"]) == (2.1, "EUR", str(project))
    opened = Sweep.open("latest")
    assert opened.folder == made.folder
    assert repr(opened).endswith("incomplete, 0 of 6 finished, 6 not started")
    from submitrain.launcher.plan.prepare import prepare

    point = made.points[0]
    again = prepare(made.config, overrides=[*point.overrides, "name=x"], cluster="local")
    assert again.loaded.digest == point.digest


def test_python_has_the_sweep_beside_and_on_launch(project: Path) -> None:
    assert launch.sweep is sweep  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="unknown option repeat; did you mean repeats"):
        sweep("cfg.yaml", nodes=[1], repeat=2)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"grid\['seed'\]: expected a list"):
        sweep("cfg.yaml", grid={"seed": 3})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="expected each node count once"):
        sweep({**tiny_config(project)}, nodes=[1, 1])
    assert Run is not None
