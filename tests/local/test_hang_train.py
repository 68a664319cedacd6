"""A real training with a rank that hangs: named, restarted in place, and the same curve."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from submitrain.launcher import launch
from tests.local.test_survive_local import WAIT_S, last_step, rank_pids, wait_for
from tests.paths import TESTS
from tests.tiny import assert_same_run, attempts, tiny_config

pytestmark = pytest.mark.ranks
PLAIN = {"_target_": "tests.components.PacedAdamW", "pause_s": 0.0}
HANG = {"silence_s": 6, "step_s": 6}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the runs of this module share."""
    return tmp_path_factory.mktemp("hang")


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Path:
    """The run that nothing happened to."""
    run = launch(tiny_config(home, optimizer=PLAIN), cluster="local")
    assert run.wait(WAIT_S).state == "finished"
    return run.folder


def hang_of(end: dict[str, Any]) -> dict[str, Any]:
    """The hang in the record of an attempt's end."""
    hang: dict[str, Any] = end["evidence"]["hang"]
    return hang


def test_two_hangs_of_one_run_are_named_and_the_curve_stays(home: Path, undisturbed: Path) -> None:
    """A component that never returns while both ranks beat, then a rank that is stopped."""
    optimizer = {"_target_": "tests.components.HangingAdamW", "rank": 1, "update": 9}
    config = tiny_config(home, optimizer=optimizer, resilience={"hang": HANG})
    run = launch(config, cluster="local")
    wait_for(lambda: last_step(run) >= 12, "step 12")
    os.kill(rank_pids(run)[0], signal.SIGSTOP)
    assert run.wait(WAIT_S).state == "finished"
    first, second, last = attempts(run.folder)
    assert [end["cause"] for end in (first, second, last)] == ["hung", "hung", "finished"]
    assert (hang_of(first)["rank"], hang_of(second)["rank"]) == (1, 0)
    lines = (TESTS / "components.py").read_text().splitlines()
    [line] = [n for n, text in enumerate(lines, start=1) if "time.sleep(3600)" in text]
    assert hang_of(first)["where"].endswith(f"components.py:{line}")
    assert_same_run(run.folder, undisturbed)


def test_a_data_set_that_never_returns_is_named_with_its_line(tmp_path: Path) -> None:
    """Rank 0 reads the data, and the other rank waits for it, outside of any collective."""
    dataset = {
        "_target_": "tests.components.HangingData",
        "rows": 200,
        "row": 150,
        "struck": str(tmp_path / "struck"),
    }
    config = tiny_config(tmp_path, resilience={"hang": {**HANG, "data_s": 6}})
    config["dataset"] = {**dataset, "max_length": 64, "cache_dir": str(tmp_path / "cache")}
    run = launch(config, cluster="local")
    assert run.wait(WAIT_S).state == "finished"
    first, last = attempts(run.folder)
    assert (first["cause"], last["cause"]) == ("hung", "finished")
    assert (hang_of(first)["rank"], hang_of(first)["phase"]) == (0, "data")
    lines = (TESTS / "components.py").read_text().splitlines()
    [line] = [n for n, text in enumerate(lines, start=1) if "signal.pause()" in text]
    assert hang_of(first)["where"].endswith(f"components.py:{line}")
