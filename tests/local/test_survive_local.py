"""The promise on one machine: a disturbed run is the undisturbed run, bit for bit.

Two real ranks on gloo; dropout, packing, accumulation, loader workers, several epochs.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind, read_events
from submitrain.launcher import Run, launch
from submitrain.launcher.plan.config import load_config
from submitrain.run_folder import RunDir
from tests.forked import run_forked, train
from tests.tiny import assert_same_run, attempts, consumed, curve, losses, tiny_config

pytestmark = pytest.mark.ranks
WAIT_S = 240.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the runs of this module share, with their samples and token cache."""
    return tmp_path_factory.mktemp("survive")


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Path:
    """A run that nothing happened to; it crosses epochs, or the other tests would prove less."""
    run = launch(tiny_config(home), cluster="local")
    assert run.wait(WAIT_S).state == "finished"
    steps = list(read_events(RunDir(run.folder).events(0), kinds=frozenset({Kind.STEP})))
    assert steps[-1]["epoch"] >= 1
    assert len(curve(run.folder)) == 24
    return run.folder


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Poll until ``condition`` holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def last_step(run: Run) -> int:
    """Newest step that rank 0 recorded."""
    return max(curve(run.folder), default=0)


def rank_pids(run: Run) -> dict[int, int]:
    """Process ids of the newest attempt's ranks."""
    pids = {}
    for path in RunDir(run.folder).events_dir.glob("rank*.jsonl"):
        for event in read_events(path, kinds=frozenset({Kind.START})):
            pids[event["rank"]] = event["pid"]
    return pids


@pytest.mark.parametrize("moment", [3, 12], ids=["before-a-checkpoint", "across-an-epoch"])
def test_a_killed_rank_is_replaced_and_the_curve_stays(
    home: Path, undisturbed: Path, moment: int
) -> None:
    run = launch(tiny_config(home), cluster="local")
    wait_for(lambda: last_step(run) >= moment, f"step {moment}")
    os.kill(rank_pids(run)[1], signal.SIGKILL)
    assert run.wait(WAIT_S).state == "finished"
    assert [end["cause"] for end in attempts(run.folder)] == ["rank_died", "finished"]
    assert_same_run(run.folder, undisturbed)


def test_sigterm_of_the_job_saves_and_a_resume_completes_the_same_run(
    home: Path, undisturbed: Path
) -> None:
    run = launch(tiny_config(home), cluster="local")
    wait_for(lambda: last_step(run) >= 7, "step 7")
    run.terminate()
    assert run.wait(WAIT_S).state == "stopped"
    stopped_at = last_step(run)
    resumed = Run.open(str(run.folder)).resume()
    assert resumed.wait(WAIT_S).state == "finished"
    first = next(
        event for event in read_events(RunDir(run.folder).events(0), kinds=frozenset({Kind.RESUME}))
    )
    assert first["step"] == stopped_at, "a graceful stop loses no step"
    assert_same_run(run.folder, undisturbed)


def test_cancel_then_resume_completes_the_same_run(home: Path, undisturbed: Path) -> None:
    run = launch(tiny_config(home), cluster="local")
    wait_for(lambda: last_step(run) >= 9, "step 9")
    run.cancel()
    assert run.wait(WAIT_S).state == "cancelled"
    run.resume()
    assert run.wait(WAIT_S).state == "finished"
    assert_same_run(run.folder, undisturbed)


def test_an_epoch_is_consumed_exactly_once_at_changing_world_sizes(home: Path) -> None:
    """4 -> 2 -> 3 -> 8 ranks: every sample of the epoch once, losses within 1e-6 relative."""
    model = tiny_config(home)["model"]
    config = {**model["config"], "attention_dropout": 0.0}
    base = tiny_config(
        home,
        model={**model, "config": config},
        step_scheduler={
            "grad_acc_steps": None,
            "max_steps": None,
            "global_batch_size": 4,
            "num_epochs": 1,
            "ckpt_every_steps": 100,
        },
        dataloader={"batch_size": 1, "num_workers": 0},
        packed_sequence={"enabled": True, "packed_sequence_size": 64},
        slurm={"ntasks_per_node": 4},
    )
    reference = home / "reference"
    run_forked(4, train, reference, load_config(base).config.model_dump())
    total = max(curve(reference))
    run = launch(base, cluster="local")
    for number, ranks in enumerate([2, 3, 8], start=1):
        moment = number * total // 5
        wait_for(lambda moment=moment: last_step(run) >= moment, f"step {moment}")
        run.terminate()
        assert run.wait(WAIT_S).state == "stopped", "the run ended before it could be stopped"
        run.resume(ntasks_per_node=ranks)
    assert run.wait(WAIT_S).state == "finished"
    ids = sorted(i for step in consumed(run.folder).values() for i in step)
    assert ids == sorted(i for step in consumed(reference).values() for i in step)
    assert ids == sorted(set(ids)), "a sample was consumed twice"
    expected, got = losses(reference), losses(run.folder)
    assert got == {step: pytest.approx(loss, rel=1e-6) for step, loss in expected.items()}
