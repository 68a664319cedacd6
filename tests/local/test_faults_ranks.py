"""Faults strike real ranks where their moment says, and the run is still the undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind, read_events
from submitrain.launcher import launch
from submitrain.run_folder import RunDir
from submitrain.train.faults import read_fired
from tests.tiny import assert_same_run, attempts, launch_faulty, tiny_config

pytestmark = pytest.mark.ranks
WAIT_S = 240.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the runs of this module share, with their samples and token cache."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Path:
    """A run that nothing happened to; no faults folder came into being."""
    run = launch(tiny_config(home), cluster="local")
    assert run.wait(WAIT_S).state == "finished"
    assert not RunDir(run.folder).fired.exists()
    return run.folder


STRUCK: dict[str, tuple[list[dict[str, Any]], list[set[int]]]] = {
    # faults -> the steps from which each later attempt may have gone on: saves are asynchronous
    "killed before and after the rename": (
        [
            {"moment": "publish", "kind": "kill", "step": 10},
            {"moment": "latest", "kind": "kill", "step": 10},
        ],
        [{5}, {10}],
    ),
    "left without a word at the end of an epoch, twice": (
        [{"moment": "epoch_end", "kind": "exit0", "rank": 1, "times": 2}],
        [{5, 10}, {5, 10}],
    ),
}


@pytest.mark.parametrize("name", STRUCK)
def test_a_struck_run_is_the_undisturbed_run(home: Path, undisturbed: Path, name: str) -> None:
    faults, resumed_from = STRUCK[name]
    run = launch_faulty(tiny_config(home), *faults)
    assert run.wait(WAIT_S).state == "finished"
    fired = read_fired(RunDir(run.folder))
    assert {(one.moment, one.kind) for one in fired} == {(f["moment"], f["kind"]) for f in faults}
    assert len(fired) == len(resumed_from)
    causes = [end["cause"] for end in attempts(run.folder)]
    assert causes == [*["rank_died"] * len(fired), "finished"]
    resumes = read_events(RunDir(run.folder).events(0), kinds=frozenset({Kind.RESUME}))
    steps = [event["step"] for event in resumes]
    assert all(step in allowed for step, allowed in zip(steps, resumed_from, strict=True)), steps
    assert_same_run(run.folder, undisturbed)
