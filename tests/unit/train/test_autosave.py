"""Automatic saves: what is measured, what is remembered, and that they leave the curve alone."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from submitrain.attempts import attempts_of
from submitrain.config import RunConfig
from submitrain.events import EXIT_FINISHED, Kind, append_line, read_events
from submitrain.launcher import launch
from submitrain.run_folder import RunDir
from submitrain.train.callbacks.autosave import (
    FIRST_STEPS,
    AutoSave,
    FailureRate,
    SaveCost,
    lost_work,
    read_failures,
    read_save_cost,
)
from submitrain.train.context import RankContext
from tests.forked import run_forked, train
from tests.tiny import assert_same_run, attempts, curve, tiny_config

DAY = 86_400.0
WAIT_S = 240.0


@dataclass
class Disk:
    """A saver on a clock of our own: a save blocks for 2 s and goes on for 20 s beside training."""

    now: float = 0.0
    began: float = -1e9

    @property
    def newest_cost(self) -> SaveCost | None:
        return SaveCost(2.0, 22.0) if self.began >= 0 and self.ready() else None

    def ready(self) -> bool:
        return self.now >= self.began + 22.0

    def train(self, auto: AutoSave, steps: int, step_s: float = 1.0) -> list[int]:
        """Do steps, one and a half times as long beside a save; returns after which it saved."""
        saved = []
        for step in range(1, steps + 1):
            wish = auto.wants()
            self.now += step_s if self.ready() else 1.5 * step_s
            auto.stepped(0.0)
            if wish:
                saved.append(step)
                self.began, self.now = self.now, self.now + 2.0
                auto.saved()
        return saved


def context_of(folder: Path, attempt: int = 1) -> RankContext:
    run_dir = RunDir(folder)
    run_dir.events_dir.mkdir(exist_ok=True)
    return RankContext(run_dir, attempt, "17", 0, 8, 0, 4)


def intervals(folder: Path) -> list[dict[str, Any]]:
    kinds = frozenset({Kind.CHECKPOINT_INTERVAL})
    return list(read_events(RunDir(folder).events(0), kinds=kinds))


def saved_steps(folder: Path, attempt: int = 1) -> list[int]:
    events = read_events(RunDir(folder).events(0), kinds=frozenset({Kind.CHECKPOINT}))
    return [event["step"] for event in events if event["attempt"] == attempt]


def test_the_first_save_is_measured_and_the_interval_follows(tmp_path: Path) -> None:
    disk = Disk()
    auto = AutoSave(context_of(tmp_path), disk, FailureRate(DAY / 4, 2), clock=lambda: disk.now)
    first, second, third = disk.train(auto, 1000)[:3]
    assert first == FIRST_STEPS
    (told,) = intervals(tmp_path)
    # 14 steps of 1.5 s run beside the save, which goes on for 20 s after the copy
    assert (told["blocked_s"], told["save_s"], told["slowed_s"]) == (2.0, 22.0, 7.0)
    assert told["interval_s"] == pytest.approx((2 * 9.0 * DAY / 8) ** 0.5, rel=1e-5)
    assert told["bound"] == "formula"
    seconds_between = (third - second) + 14 * 0.5
    assert seconds_between == pytest.approx(told["interval_s"], abs=1.5)


def test_it_does_not_wish_for_a_save_beside_another(tmp_path: Path) -> None:
    disk = Disk()
    auto = AutoSave(context_of(tmp_path), disk, FailureRate(1.0, 1), clock=lambda: disk.now)
    steps = disk.train(auto, 300)
    assert min(after - before for before, after in pairwise(steps)) > 40


def test_a_change_is_told_once_and_heartbeats_carry_it(tmp_path: Path) -> None:
    disk = Disk()
    auto = AutoSave(context_of(tmp_path), disk, FailureRate(DAY, 1), clock=lambda: disk.now)
    disk.train(auto, 100)
    auto.rate = FailureRate(DAY / 4, 1)
    disk.train(auto, 100)
    first, second = (event["interval_s"] for event in intervals(tmp_path))
    assert second == pytest.approx(first / 2, rel=0.05)
    auto.context.beat()
    (beat,) = read_events(RunDir(tmp_path).events(0), kinds=frozenset({Kind.HEARTBEAT}))
    assert beat["ckpt_interval_s"] == pytest.approx(second, rel=0.01)


def end(**facts: Any) -> dict[str, Any]:
    evidence = {"world_size": 8, "finished": 0, "stopped": 0, **facts.pop("evidence", {})}
    return {"first_step": 4, "last_step": 9, "evidence": evidence, **facts}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (end(), True),
        (end(evidence={"stopped": 8}), False),
        (end(evidence={"finished": 8}), False),
        (end(evidence={"stopped": 7}), True),
        (end(last_step=4), False),
        (end(first_step=None, last_step=None), False),
        (end(first_step=None), True),
        ({"first_step": 4, "last_step": 9}, True),
    ],
    ids=["died", "stopped", "finished", "one did not", "no step", "nothing", "cold", "vanished"],
)
def test_an_attempt_counts_as_a_failure_when_it_lost_work(
    event: dict[str, Any], expected: bool
) -> None:
    lines = [{"kind": kind, "attempt": 1, **event} for kind in ("attempt_start", "attempt_end")]
    (attempt,) = attempts_of(lines)
    assert lost_work(attempt) is expected


def test_failures_and_time_are_read_from_the_attempts(tmp_path: Path) -> None:
    now = time.time()
    path = RunDir(tmp_path).attempts

    def say(kind: Kind, attempt: int, t: float, **fields: Any) -> None:
        append_line(path, {"kind": kind, "attempt": attempt, "t": t, **fields})

    for attempt, began, lost in ((1, -1000, True), (2, -600, False)):
        say(Kind.ATTEMPT_START, attempt, now + began)
        say(Kind.ATTEMPT_END, attempt, now + began + 300, **end(last_step=9 if lost else 4))
    say(Kind.ATTEMPT_START, 3, now - 100)
    failures, observed_s = read_failures(RunDir(tmp_path), 3)
    assert (failures, round(observed_s)) == (1, 700)


def test_the_cost_of_a_save_is_known_after_a_restart(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    path = context.run_dir.events(0)
    assert read_save_cost(path) is None
    context.events.write(Kind.CHECKPOINT, step=10, path="x", bytes=1, blocked_s=1.0, save_s=4.0)
    assert read_save_cost(path) == SaveCost(1.0, 4.0)
    context.events.write(Kind.CHECKPOINT_INTERVAL, blocked_s=1.5, save_s=5.0, slowed_s=0.5)
    context.events.write(Kind.CHECKPOINT, step=20, path="y", bytes=1, blocked_s=9.0, save_s=9.0)
    assert read_save_cost(path) == SaveCost(1.5, 5.0, 0.5)
    assert read_save_cost(path, limit_bytes=180) == SaveCost(9.0, 9.0)


def often(folder: Path, every: Any = "auto", *, max_steps: int) -> dict[str, Any]:
    """Nodes that fail every second: saves as often as the floor allows."""
    steps = {"grad_acc_steps": 1, "max_steps": max_steps}
    return tiny_config(
        folder,
        step_scheduler={**steps, "ckpt_every_steps": every},
        resilience={"mttf": "1s"},
    )


class Wishes(AutoSave):
    """Wishes for a save after given steps, whatever it costs."""

    after: frozenset[int] = frozenset({3, 8, 9, 13})

    def wants(self) -> bool:
        return self.context.step + 1 in self.after


def train_by_wish(context: RankContext, config: dict[str, Any]) -> int:
    """The whole recipe, with a scripted rank 0."""
    from submitrain.train import recipe

    def scripted(context: RankContext, _config: RunConfig, saver: Any) -> AutoSave | None:
        return Wishes(context, saver, FailureRate(DAY, 1)) if context.rank == 0 else None

    recipe.auto_save = scripted
    return recipe.main(context, RunConfig.model_validate(config))


@pytest.mark.ranks
def test_all_ranks_save_when_rank_0_wishes_and_the_curve_is_that_of_fixed_steps(
    tmp_path: Path,
) -> None:
    auto, fixed = often(tmp_path, max_steps=14), often(tmp_path, 5, max_steps=14)
    assert run_forked(2, train_by_wish, tmp_path / "auto", auto) == [EXIT_FINISHED] * 2
    assert run_forked(2, train, tmp_path / "fixed", fixed) == [EXIT_FINISHED] * 2
    assert saved_steps(tmp_path / "auto") == [3, 8, 9, 13, 14]
    assert_same_run(tmp_path / "auto", tmp_path / "fixed")


@pytest.mark.ranks
def test_rare_failures_and_cheap_saves_leave_only_the_first_and_the_last_save(
    tmp_path: Path,
) -> None:
    config = {**often(tmp_path, max_steps=24), "resilience": {"mttf": "150d"}}
    assert run_forked(2, train, tmp_path / "run", config) == [EXIT_FINISHED] * 2
    assert saved_steps(tmp_path / "run") == [FIRST_STEPS, 24]


@pytest.mark.ranks
def test_a_killed_run_with_automatic_saves_has_the_curve_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    run = launch(often(tmp_path, max_steps=60), cluster="local")
    deadline = time.monotonic() + WAIT_S
    while max(curve(run.folder), default=0) < 25:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    starts = read_events(RunDir(run.folder).events(1), kinds=frozenset({Kind.START}))
    os.kill(next(iter(starts))["pid"], signal.SIGKILL)
    assert run.wait(WAIT_S).state == "finished"
    assert [one["cause"] for one in attempts(run.folder)] == ["rank_died", "finished"]
    events = read_events(RunDir(run.folder).events(0), kinds=frozenset({Kind.RESUME}))
    resumed = [event["step"] for event in events]
    assert resumed == [saved_steps(run.folder)[-1]]
    assert resumed[0] >= FIRST_STEPS
    after = [event for event in intervals(run.folder) if event["attempt"] == 2]
    assert after[0]["failures"] == 1
    assert after[0]["step"] <= resumed[0] + 2, "what the first attempt measured still holds"
    fixed = launch(often(tmp_path, 50, max_steps=60), cluster="local")
    assert fixed.wait(WAIT_S).state == "finished"
    assert_same_run(run.folder, fixed.folder)
