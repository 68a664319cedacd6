"""Real sweeps on this machine: a tiny model over emulated nodes; cut short, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from submitrain.errors import UserError
from submitrain.launcher import Sweep, sweep
from submitrain.launcher.cli.main import main
from submitrain.launcher.run import Run
from submitrain.status import RunState
from tests.local.test_launch import end_processes
from tests.paths import REPOSITORY, TOY_RANK
from tests.tiny import tiny_config

pytestmark = pytest.mark.ranks
WAIT_S = 300.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sweep_over_emulated_nodes_measures_all_and_says_that_it_is_no_performance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(
        tmp_path,
        runs_dir="runs",
        dataloader={"batch_size": 1, "num_workers": 0},
        step_scheduler={"grad_acc_steps": 4, "max_steps": 1000, "ckpt_every_steps": 100},
        slurm={"ntasks_per_node": 1, "env": {"OMP_NUM_THREADS": "1"}},
    )
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(config))
    shape = ["--nodes", "1,2", "--repeats", "1", "--steps", "8", "--warmup", "3"]
    more = ["--price", "2.10EUR", "--cluster", "local", "--json", "--html", "out.html"]
    assert main(["sweep", "cfg.yaml", *shape, *more]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["state"] == "finished"
    assert report["emulated_why"] == (
        "emulated, not performance: 2 nodes were 1 machine, and shared its cores"
    )
    [series] = report["series"]
    assert [one["nodes"] for one in series["counts"]] == [1, 2]
    assert len({point["digest"] for point in series["points"]}) == 2
    for point in series["points"]:
        assert (point["state"], point["timed_steps"], point["restarts"]) == ("finished", 8, 0)
        assert point["saves"]["saves"] == 2, "one behind the timed steps, one at the end"
        assert point["saves"]["bytes"] > 0
        folder = Path(point["folder"])
        assert not list(folder.glob("checkpoints/step-*")), "nobody goes on from a timing run"
    assert series["recommendation"]["nodes"] is None
    assert "expected 2 repeats or more" in series["recommendation"]["why"][0]
    for one in series["counts"]:
        assert (one["repeats"], one["tokens_per_s"]["low"]) == (1, None)
        assert one["time_to_result_s"]["value"] > 1000 * one["step_s"]["value"]
        assert one["wait_s"] is None, "there is no queue here"
        cost = one["nodes"] * 2.10 * 1e6 / 3600 / one["tokens_per_s"]["value"]
        assert one["price_per_million_tokens"]["value"] == pytest.approx(cost)
    page = (tmp_path / "out.html").read_text()
    assert page.count("<svg") == 3
    assert "emulated, not performance" in page
    assert "http" not in page
    assert '<div class="submitrain-card">' in Sweep.open("latest")._repr_html_()
    assert main(["sweep", "report", "latest"]) == 0
    assert "EUR per million tokens" in capsys.readouterr().out


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project whose ranks only count; what still runs is ended afterwards."""
    shutil.copy(TOY_RANK, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "toy_rank")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    yield tmp_path
    for record in tmp_path.glob("runs/*/*/record.json"):
        end_processes(Run(record.parent))


def test_a_cancelled_sweep_goes_on_without_what_has_finished(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEP_S", "0.2")
    config = tiny_config(project, runs_dir="runs", slurm={"ntasks_per_node": 1})
    shape = {"steps": 4, "warmup": 1, "repeats": 1, "cluster": "local", "mode": "weak"}
    begun = sweep(config, nodes=[1, 2, 3], **shape)  # type: ignore[typeddict-item]
    wait_for(lambda: len(begun.runs()) == 2 and begun.status()[1][1].folder)
    with pytest.raises(UserError, match="is being submitted right now by sweep"):
        begun.resume(stay=True)
    begun.cancel()
    assert begun.wait(WAIT_S) == "cancelled"
    _, states = begun.status()
    assert [one.word for one in states] == ["finished", "cancelled", "not started"]
    assert main(["sweep", "report", str(begun.folder)]) == 1, "not complete"
    with pytest.raises(UserError, match="has ended already: cancelled"):
        begun.cancel()
    first = states[0].folder
    assert main(["sweep", "resume", str(begun.folder), "--wait"]) == 0
    state, states = begun.status()
    assert state == "finished"
    assert states[0].folders == (first,), "not run again"
    assert [len(one.folders) for one in states] == [1, 2, 1], "timed: anew, not gone on with"
    report = begun.report()
    assert [one.failures for one in report.points] == [0, 0, 0], "a cancelled run did not fail"
    with pytest.raises(UserError, match="has finished"):
        begun.resume()


def test_a_grid_shows_what_came_of_each_and_a_cancelled_run_of_it_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY_STEP_S", "0.2")
    config = tiny_config(project, runs_dir="runs", step_scheduler={"max_steps": 12})
    (project / "cfg.yaml").write_text(yaml.safe_dump(config))
    grid = ["--grid", "optimizer.lr=1e-3,2e-3", "--cluster", "local", "--warmup", "2"]
    assert main(["sweep", "cfg.yaml", *grid, "--detach", "--json"]) == 0
    begun = Sweep(Path(json.loads(capsys.readouterr().out)["folder"]))
    wait_for(lambda: any(run.metrics() for run in begun.runs().values()))
    begun.cancel()
    # The run still saves: resume waits for its end, or it could not go on with it.
    assert main(["sweep", "resume", str(begun.folder), "--wait", "--html", "grid.html"]) == 0
    _, states = begun.status()
    assert [len(one.folders) for one in states] == [1, 1], "gone on with, in the same folder"
    report = begun.report()
    assert [one.label for one in report.series] == ["lr=1e-3", "lr=2e-3"]
    assert [one.loss for one in report.points] == [pytest.approx(4.0 / 12)] * 2
    out = capsys.readouterr().out
    assert "optimizer.lr" in out and "0.3333" in out
    assert "Training loss by step" in (project / "grid.html").read_text()


def test_a_sweep_stops_when_its_first_run_blames_the_input(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY_DATA_ERROR", "1")
    config = tiny_config(project, runs_dir="runs")
    (project / "cfg.yaml").write_text(yaml.safe_dump(config))
    command = ["sweep", "cfg.yaml", "--grid", "seed=1,2", "--cluster", "local"]
    assert main(command) == 2
    assert "no other point was started" in capsys.readouterr().err
    [run] = Sweep.open("latest").runs().values()
    assert run.status().state is RunState.FAILED
    assert os.environ["TOY_DATA_ERROR"]
