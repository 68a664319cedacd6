"""A run that is stopped, resumed or moved to another number of ranks stays the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from submitrain.events import EXIT_FINISHED, EXIT_STOPPED, Kind, read_events
from submitrain.run_folder import RunDir
from tests.forked import run_forked, train
from tests.tiny import assert_same_run, consumed, losses, tiny_config

pytestmark = pytest.mark.ranks


def short(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    steps = {"max_steps": 8, "grad_acc_steps": 2, "ckpt_every_steps": 3}
    return tiny_config(folder, **{"step_scheduler": steps, **sections})


def test_stopped_and_resumed_run_repeats_every_bit(tmp_path: Path) -> None:
    config = short(tmp_path)
    assert config["model"]["config"]["attention_dropout"] > 0
    assert run_forked(2, train, tmp_path / "whole", config) == [EXIT_FINISHED] * 2
    assert run_forked(2, train, tmp_path / "cut", config, 4) == [EXIT_STOPPED] * 2
    assert run_forked(2, train, tmp_path / "cut", config) == [EXIT_FINISHED] * 2
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_stop_asked_of_one_rank_saves_that_step_once(tmp_path: Path) -> None:
    run_forked(2, train, tmp_path / "run", short(tmp_path), 3)
    events = list(read_events(RunDir(tmp_path / "run").events(0)))
    saved = [event["step"] for event in events if event["kind"] == Kind.CHECKPOINT]
    stopped = [(e["step"], e["reason"]) for e in events if e["kind"] == Kind.STOPPED]
    assert (saved, stopped) == ([3], [(3, "asked")])


def test_world_size_may_change_at_every_resume(tmp_path: Path) -> None:
    config = short(
        tmp_path,
        model={**tiny_config(tmp_path)["model"]},
        step_scheduler={"global_batch_size": 8, "max_steps": 8, "grad_acc_steps": None},
        dataloader={"batch_size": 2, "num_workers": 0},
    )
    config["model"]["config"]["attention_dropout"] = 0.0
    run_forked(1, train, tmp_path / "single", config)
    for world_size, stop_at in ((4, 2), (2, 4), (3, 6), (8, None)):
        run_forked(world_size, train, tmp_path / "elastic", config, stop_at)
    single, elastic = losses(tmp_path / "single"), losses(tmp_path / "elastic")
    assert list(elastic) == list(range(1, 9))
    assert elastic == pytest.approx(single, rel=1e-6)
    assert consumed(tmp_path / "elastic") == consumed(tmp_path / "single")


def test_resume_on_other_data_is_refused(tmp_path: Path) -> None:
    config = short(tmp_path)
    run_forked(1, train, tmp_path / "run", config, 2)
    config["seed"] = 8
    with pytest.raises(AssertionError, match=r"DataError: dataset: the checkpoint of step 2"):
        run_forked(1, train, tmp_path / "run", config)
