"""Real drills on this machine: what they report is what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from submitrain.launcher.drill.follow import Follower
from submitrain.launcher.drill.scenarios import Steps
from submitrain.launcher.run import Run
from submitrain.run_folder import RunDir
from tests.paths import REPOSITORY
from tests.tiny import launch_faulty, tiny_config

pytestmark = pytest.mark.ranks
WAIT_S = 400.0


def start_drill(home: Path, *arguments: str, **sections: Any) -> subprocess.Popen[str]:
    """``python -m launcher drill`` on the tiny configuration, with ``--json``."""
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(home, **sections)))
    command = ["drill", str(config), "--cluster", "local", "--json", *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON on standard output, what standard error said."""
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, json.loads(out), err


def test_a_drill_proves_that_two_faults_left_the_curve_as_it_was(tmp_path: Path) -> None:
    shape = ["--steps", "12", "--faults", "kill,stop", "--shrink"]
    code, report, err = finish(start_drill(tmp_path, *shape))
    assert code == 0, err
    assert report["ok"] is True
    assert report["verdict"].startswith("All 2 faults ended as promised")
    calm, kill, stop = report["runs"]
    assert (calm["id"], kill["id"], stop["id"]) == ("undisturbed", "kill", "stop")
    assert len(calm["losses"]) == 12
    for run in (kill, stop):
        assert run["comparison"]["identical"] is True
        (recovery,) = run["recoveries"]
        assert sum(recovery["seconds"].values()) == pytest.approx(recovery["total_s"], abs=0.01)
        assert {"noticed", "ended", "imports", "load", "first_step"} <= set(recovery["seconds"])
    (hit,) = kill["injections"]
    assert (hit["what"], hit["step"], hit["rank"]) == ("kill at step", 8, 1)
    assert (kill["cause"], kill["action"]) == ("rank_died", "restart")
    assert kill["recoveries"][0]["began"] == hit["t"]
    assert kill["lost_steps"] in (1, 4), "from the checkpoint of step 6, or of step 3"
    assert (stop["cause"], stop["lost_steps"]) == ("terminated", 0)
    folder = Path(report["folder"])
    assert json.loads((folder / "drill.json").read_text()) == report
    page = (folder / "drill.html").read_text()
    assert report["verdict"] in page
    assert page.count("<svg") == 2
    assert "http" not in page
    assert not list(folder.glob("*/checkpoints/step-*")), "good runs keep no checkpoints"
    assert len(list(folder.glob("*/record.json"))) == 3


def test_an_interrupted_drill_cancels_its_run_and_reports_what_it_has(tmp_path: Path) -> None:
    process = start_drill(tmp_path, "--faults", "kill")
    runs = tmp_path / "runs"
    deadline = time.monotonic() + WAIT_S
    while not list(runs.glob("drill-*/undisturbed-*/events/rank00000.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, report, err = finish(process)
    assert code == 1, err
    assert report["interrupted"] is True
    (run,) = report["runs"]
    assert (run["state"], run["verdict"]) == ("interrupted", "interrupted by you")
    assert Run(Path(run["folder"])).status().state == "cancelled"
    assert "No result: interrupted" in (Path(report["folder"]) / "drill.html").read_text()


def test_a_training_that_never_repeats_itself_is_told_from_a_bad_recovery(tmp_path: Path) -> None:
    noisy = {"_target_": "tests.components.NoisyAdamW", "lr": 3e-3}
    one_rank = {"ntasks_per_node": 1}
    drill = start_drill(
        tmp_path, "--steps", "8", "--faults", "kill", optimizer=noisy, slurm=one_rank
    )
    code, report, err = finish(drill)
    assert code == 1, err
    _, kill, control = report["runs"]
    assert kill["state"] == "finished"
    assert kill["comparison"]["different"]
    assert "two undisturbed runs of this configuration differ as well" in kill["advice"]
    assert (control["id"], control["ok"]) == ("control", False)
    assert list(RunDir(Path(kill["folder"])).checkpoints.glob("step-*")), "kept for a look"


class Quiet:
    """A screen that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        """Keep it."""
        self.said.append(line.strip())

    def doing(self, text: str) -> None:
        """Forget it."""


def test_a_run_that_makes_no_step_for_too_long_is_given_up(tmp_path: Path) -> None:
    screen = Quiet()
    stuck = {"moment": "rendezvous", "kind": "hang", "rank": 1}
    run = launch_faulty(tiny_config(tmp_path, resilience={"kill_wait_s": 2}), stuck)
    followed = Follower(run, None, Steps.of(8), 1.0, None, screen).to_the_end()
    assert followed.status.state == "cancelled"
    assert followed.problem.startswith("no new step in")
    assert followed.problem in screen.said
