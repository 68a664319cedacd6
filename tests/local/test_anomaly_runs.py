"""Bad data, bad updates and spikes in real runs of two ranks: skipped, undone, or the end.

Without packing and shuffling a step consumes eight samples in their order: step 7 those from 48 on.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from submitrain.config import RunConfig
from submitrain.events import Kind, read_events
from submitrain.launcher import Run, launch
from submitrain.rollbacks import read_rollbacks
from submitrain.run_folder import RunDir
from submitrain.train.data.prepare import DataContext, prepare_tokenizer
from tests.local.test_survive_local import last_step, rank_pids, wait_for
from tests.tiny import assert_same_run, attempts, consumed, losses, tiny_config, write_samples

pytestmark = pytest.mark.ranks
WAIT_S = 240.0
MARK = "\u2603"
"""A character whose tokens are in no other sample."""


def poisoned(
    folder: Path, bad: range, factor: str = "nan", *, ranks: int = 2, **sections: Any
) -> dict[str, Any]:
    """A run over one epoch of 15 steps, in which the samples ``bad`` spoil their micro-batch."""
    folder.mkdir(exist_ok=True)
    samples = write_samples(folder / "samples.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    for index in bad:
        rows[index]["output"] += MARK
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(
        folder,
        slurm={"ntasks_per_node": ranks},
        step_scheduler={
            "max_steps": None,
            "num_epochs": 1,
            "ckpt_every_steps": 1,
            "grad_acc_steps": 4 // ranks,
        },
        packed_sequence={"enabled": False},
        dataloader={"batch_size": 2, "num_workers": 1, "shuffle": False},
        checkpoint={"save_consolidated": False, "keep_last_n_checkpoints": 1},
        **sections,
    )
    config["model"]["config"]["vocab_size"] = 400
    tokenizer = prepare_tokenizer(
        RunConfig.model_validate(config), DataContext(0, 1, folder / ".cache")
    )
    texts = [row["instruction"] + row["output"] for n, row in enumerate(rows) if n not in bad]
    poison = set(tokenizer.encode(MARK)) - {i for text in texts for i in tokenizer.encode(text)}
    assert poison
    config["model"] |= {
        "_target_": "tests.components.poisoned_llama",
        "poison": sorted(poison),
        "factor": factor,
    }
    return config


def finish(config: dict[str, Any], state: str = "finished") -> Run:
    run = launch(config, cluster="local")
    status = run.wait(WAIT_S)
    assert status.state == state, status
    return run


def explanation(run: Run) -> str:
    return str(json.loads(RunDir(run.folder).summary.read_text())["explanation"])


def events(run: Run, kind: Kind) -> list[dict[str, Any]]:
    return list(read_events(RunDir(run.folder).events(0), kinds=frozenset({kind})))


def seen(run: Run) -> list[int]:
    return sorted(i for step in consumed(run.folder).values() for i in step)


def test_a_step_that_is_not_finite_is_skipped_and_the_run_finishes(tmp_path: Path) -> None:
    run = finish(poisoned(tmp_path, range(50, 51)))
    [anomaly] = events(run, Kind.ANOMALY)
    assert (anomaly["step"], anomaly["what"], anomaly["action"]) == (7, "not_finite", "skipped")
    assert (anomaly["position"], anomaly["end"], anomaly["loss"]) == (48, 56, "nan")
    assert anomaly["samples"] == list(range(48, 56))
    assert sorted(losses(run.folder)) == [n for n in range(1, 16) if n != 7]
    assert seen(run) == list(range(120))
    assert not RunDir(run.folder).skips.exists()


BAD = range(48, 64)
ONE_SKIP = {"resilience": {"max_skipped_steps": 1, "max_rollbacks": 1}}


def test_bad_data_is_left_out_and_a_kill_afterwards_changes_nothing(tmp_path: Path) -> None:
    config = poisoned(tmp_path, BAD, **ONE_SKIP)
    run = finish(config)
    assert [(e["cause"], e["action"]) for e in attempts(run.folder)] == [
        ("not_finite", "restart"),
        ("finished", "done"),
    ]
    [rollback] = read_rollbacks(RunDir(run.folder))
    assert (rollback.first_step, rollback.windows) == (7, ((48, 64),))
    # With one checkpoint to keep, that of step 7 came after the trouble: it must not be used.
    rejected = [Path(event["path"]).name for event in events(run, Kind.CHECKPOINT_REJECTED)]
    assert rejected == ["step-00000007"]
    assert [event["step"] for event in events(run, Kind.RESUME)] == [6]
    assert sorted(losses(run.folder)) == list(range(1, 14))
    left = [i for step, ids in consumed(run.folder).items() if step <= 13 for i in ids]
    assert sorted(left) == [i for i in range(120) if i not in BAD]

    killed = launch(config, cluster="local")
    wait_for(lambda: len(attempts(killed.folder)) == 1, "the rollback")
    wait_for(lambda: last_step(killed) >= 9, "step 9")
    os.kill(rank_pids(killed)[1], signal.SIGKILL)
    assert killed.wait(WAIT_S).state == "finished"
    causes = [end["cause"] for end in attempts(killed.folder)]
    assert causes == ["not_finite", "rank_died", "finished"]
    assert_same_run(killed.folder, run.folder)


def test_data_that_stays_bad_stops_the_run_with_advice(tmp_path: Path) -> None:
    run = finish(poisoned(tmp_path, range(48, 120), ranks=1, **ONE_SKIP), "failed")
    assert [(e["cause"], e["action"]) for e in attempts(run.folder)] == [
        ("not_finite", "restart"),
        ("not_finite", "stop"),
    ]
    assert "gone back 1 time already" in explanation(run)
    assert "Look at the samples 72, 73" in explanation(run)
    assert "Lower optimizer.lr" in explanation(run)


def test_an_update_that_breaks_the_weights_is_never_a_checkpoint(tmp_path: Path) -> None:
    breaking = {"_target_": "tests.components.BreakingAdamW", "lr": 3e-3, "break_at": 4}
    config = tiny_config(
        tmp_path,
        step_scheduler={"max_steps": 8, "ckpt_every_steps": 2},
        optimizer=breaking,
        resilience={"max_rollbacks": 1},
        slurm={"ntasks_per_node": 1},
    )
    run = finish(config, "failed")
    failed = events(run, Kind.CHECKPOINT_FAILED)
    assert {event["step"] for event in failed} == {4}
    assert "not finite: the last update broke it" in failed[0]["reason"]
    assert [event["step"] for event in events(run, Kind.RESUME)] == [2]
    [rollback] = read_rollbacks(RunDir(run.folder))
    assert (rollback.what, rollback.first_step, rollback.last_step) == ("weights_not_finite", 4, 5)
    assert "the weights themselves are not finite" in explanation(run)


def test_a_loss_spike_is_undone_where_that_is_asked_for(tmp_path: Path) -> None:
    limits = {"loss_spike": "rollback", "loss_spike_steps": 2, "anomaly_window_steps": 8}
    resilience = {**limits, "loss_spike_z": 15}
    config = poisoned(tmp_path, range(96, 112), "60", ranks=1, resilience=resilience)
    run = finish(config)
    assert [(e["cause"], e["action"]) for e in attempts(run.folder)] == [
        ("loss_spike", "restart"),
        ("finished", "done"),
    ]
    [rollback] = read_rollbacks(RunDir(run.folder))
    assert (rollback.first_step, rollback.windows) == (13, ((96, 112),))
    assert [event["step"] for event in events(run, Kind.RESUME)] == [12]
    assert sorted(losses(run.folder)) == [*range(1, 14)]
