"""Training functions of one's own: what is refused before a launch, and what a RunContext does."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from submitrain.config import RunConfig
from submitrain.config.resolve import load_resolved
from submitrain.errors import ConfigError, UserError
from submitrain.events import EXIT_FINISHED, EXIT_STOPPED, Kind, read_events
from submitrain.launcher import launch
from submitrain.launcher.plan.config import load_config
from submitrain.launcher.plan.prepare import prepare
from submitrain.run_folder import RunDir
from submitrain.train.checkpoint.manifest import MANIFEST, list_checkpoints, verify
from submitrain.train.context import RankContext
from submitrain.train.user_function import trainer as automodel
from submitrain.train.user_function.context import RunContext
from tests.forked import StopAt, run_forked
from tests.paths import REPOSITORY

HERE = "tests.local.test_own_code"


def works(ctx: RunContext, steps: int, rate: float = 0.5) -> None:
    """Not called at plan time."""


async def waits(ctx: RunContext) -> None:
    """Its body never runs when it is called."""


def takes_nothing() -> None:
    """No place for the context."""


def own(target: str = f"{HERE}.works", **arguments: Any) -> dict[str, Any]:
    return {"entry": {"_target_": target, "steps": 3, **arguments}, "logging": {"heartbeat_s": 1}}


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            own("tests.local.test_own_code.wroks"),
            "entry._target_: tests.local.test_own_code has no 'wroks'; ",
        ),
        (
            own(stepz=1),
            f"entry.stepz: {HERE}.works takes no such argument; did you ",
        ),
        (
            {"entry": {"_target_": f"{HERE}.works"}},
            f"entry._target_: {HERE}.works al",
        ),
        (own(f"{HERE}.waits"), f"expected a plain function, got {HERE}.waits"),
        (own(f"{HERE}.takes_nothing"), "whose first parameter takes the RunContext, got"),
        (own("collections.Counter"), "which is in Python's standard library"),
        (own("torch.nn.Linear"), "expected a function that takes a RunContext, got torch.nn.Li"),
        ({**own(), "optimizer": {"lr": 1.0}}, "optimizer: expected none beside entry"),
        ({**own(), "distributed": {"tp_size": 1}}, "distributed.tp_size: expected none beside"),
        ({**own(), "distributed": {"pp_size": 1}}, "distributed.pp_size: expected none beside"),
        ({**own(), "checkpoint": {"async_save": True}}, "checkpoint.async_save: expected none"),
        ({**own(), "resilience": {"max_rollbacks": 1}}, "resilience.max_rollbacks: expected no"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:24],
)
def test_a_wrong_entry_is_refused_before_a_launch(config: dict[str, Any], words: str) -> None:
    assert words in refusal(config)


def test_a_run_folders_configuration_holds_only_what_has_an_effect(tmp_path: Path) -> None:
    loaded = load_config(own(), changes={"name": "mine"})
    kept = tmp_path / "config.yaml"
    kept.write_text(loaded.text)
    assert "optimizer" not in loaded.text
    assert load_resolved(kept, {}) == loaded.config


def test_the_plan_names_the_function_and_promises_no_batch() -> None:
    plan = prepare(own(), cluster="local", plan_only=True).plan
    text = plan.render()
    assert f"trains       {HERE}.works" in text
    assert "batch" not in text
    assert (plan.name, plan.global_batch_size) == ("test_own_code-works", None)


def test_a_function_object_is_launched_by_its_path() -> None:
    from submitrain.launcher.plan.overrides import as_config

    source, changes = as_config(works, {"entry": {"steps": 5}})
    assert (
        load_config(source, changes=changes).config.entry
        == RunConfig.model_validate({"entry": {"_target_": f"{HERE}.works", "steps": 5}}).entry
    )
    assert as_config("cfg.yaml", {"entry": works})[1]["entry"]["_target_"] == f"{HERE}.works"


def test_a_function_that_ranks_cannot_import_is_refused_with_the_way_out() -> None:
    def inner(ctx: RunContext) -> None: ...

    for function in (inner, lambda ctx: None):
        with pytest.raises(ConfigError, match="at the top level of a module"):
            launch(function)
    with pytest.raises(ConfigError, match="expected a plain function"):
        launch(RunContext.log.__get__(object()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["-c"], "%%writefile my_training.py"), ([], "move main into a module beside it, such as mi")],
    ids=["notebook", "script"],
)
def test_a_function_of_the_main_module_is_refused_with_the_way_out(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    code = "from launcher import launch\ndef main(ctx): ...\nlaunch(main)\n"
    script = tmp_path / "mine.py"
    script.write_text(code)
    program = [*arguments, code] if arguments else [str(script)]
    done = subprocess.run(
        [sys.executable, *program],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    assert words in done.stderr


@pytest.mark.skipif(find_spec("nemo_automodel") is not None, reason="nemo-automodel is installed")
def test_automodels_own_recipe_says_what_to_install() -> None:
    config = {
        "entry": {
            "_target_": "submitrain.train.user_function.trainer.train",
            "config": "theirs.yaml",
        }
    }
    assert load_config(config).config.entry is not None
    with pytest.raises(ConfigError, match="pip install nemo-automodel"):
        automodel.read_settings("theirs.yaml")


def test_the_context_is_imported_without_torch() -> None:
    code = "import sys; from submitrain import RunContext; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# What follows runs in real ranks.


def train(ctx: RunContext, steps: int, wrong: str = "") -> None:
    """Counts; each rank writes a file of its own at every third step."""
    found = ctx.latest_checkpoint()
    step = int(found.extra["done"] or 0) if found else 0
    assert found is None or (found.folder / f"{ctx.rank}.txt").read_text() == str(step)
    while step < steps and not ctx.should_stop(step):
        step += 1
        ctx.log(step=step, loss=1 / step, tokens=10, grad_norm=0.5)
        if step % 3 == 0:
            save(ctx, step, wrong)
    save(ctx, step, "")


def save(ctx: RunContext, step: int, wrong: str) -> None:
    def write(folder: Path) -> None:
        if wrong == "disk full" and ctx.rank == 1:
            raise OSError(28, "No space left on device")
        if wrong != "nothing":
            (folder / f"{ctx.rank}.txt").write_text(str(step))

    ctx.publish_checkpoint(step, write, extra={"done": step})


def rank_main(
    context: RankContext, config: dict[str, Any], stop_at: int | None = None, path: str = ""
) -> int:
    from submitrain.train.user_function.main import main

    sys.path.insert(0, path)
    if stop_at is not None and context.rank == context.world_size - 1:
        context.stop = StopAt(stop_at)
        context.stop.context = context
    return main(context, RunConfig.model_validate(config))


def seen(folder: Path, kind: Kind, rank: int = 0) -> list[dict[str, Any]]:
    return list(read_events(RunDir(folder).events(rank), kinds=frozenset({kind})))


@pytest.mark.ranks
def test_ranks_stop_at_the_same_step_and_go_on_from_there(tmp_path: Path) -> None:
    config = own(f"{HERE}.train", steps=8)
    assert run_forked(3, rank_main, tmp_path, config, 4) == [EXIT_STOPPED] * 3
    stops = [seen(tmp_path, Kind.STOPPED, rank)[0] for rank in range(3)]
    assert [(stop["step"], stop["reason"]) for stop in stops] == [(5, "asked")] * 3
    assert run_forked(3, rank_main, tmp_path, config) == [EXIT_FINISHED] * 3
    assert [event["step"] for event in seen(tmp_path, Kind.RESUME)] == [5]
    steps = seen(tmp_path, Kind.STEP)
    assert [step["step"] for step in steps] == list(range(1, 9))
    assert float.fromhex(steps[2]["loss_hex"]) == 1 / 3
    assert all(step["tokens_per_s"] > 0 and step["mem_bytes"] > 0 for step in steps)
    assert [event["step"] for event in seen(tmp_path, Kind.CHECKPOINT)] == [3, 5, 6, 8]
    assert [seen(tmp_path, Kind.FINISH, rank)[0]["step"] for rank in range(3)] == [8] * 3
    kept = list_checkpoints(RunDir(tmp_path).checkpoints)
    assert [(path.name, verify(path)) for path in kept] == [
        ("step-00000006", []), ("step-00000008", []),
    ]  # fmt: skip
    assert set(json.loads((kept[-1] / MANIFEST).read_text())["files"]) == {
        "0.txt", "1.txt", "2.txt",
    }  # fmt: skip


@pytest.mark.ranks
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    """By fewer ranks than made it."""
    run_forked(2, rank_main, tmp_path, own(f"{HERE}.train", steps=6))
    (RunDir(tmp_path).checkpoints / "step-00000006" / "1.txt").write_text("7")
    run_forked(1, rank_main, tmp_path, own(f"{HERE}.train", steps=7))
    [rejected] = seen(tmp_path, Kind.CHECKPOINT_REJECTED)
    assert "1.txt: content changed" in rejected["reason"]
    assert [event["step"] for event in seen(tmp_path, Kind.RESUME)] == [3]


@pytest.mark.ranks
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    codes = run_forked(2, rank_main, tmp_path, own(f"{HERE}.train", steps=4, wrong="disk full"))
    assert codes == [EXIT_FINISHED] * 2
    [failed] = seen(tmp_path, Kind.CHECKPOINT_FAILED)
    assert failed["step"] == 3
    assert "rank 1: OSError: [Errno 28]" in failed["reason"]
    assert [p.name for p in list_checkpoints(RunDir(tmp_path).checkpoints)] == ["step-00000004"]


@pytest.mark.ranks
def test_a_run_whose_last_save_failed_has_not_finished(tmp_path: Path) -> None:
    config = own(f"{HERE}.saves_last", wrong="disk full")
    with pytest.raises(AssertionError, match="CheckpointError: the last checkpoint was not saved"):
        run_forked(2, rank_main, tmp_path, config)
    assert not seen(tmp_path, Kind.FINISH)


def saves_last(ctx: RunContext, steps: int, wrong: str) -> None:
    """Saves once, when all is done."""
    assert not ctx.should_stop(steps)
    save(ctx, steps, wrong)


@pytest.mark.ranks
def test_a_function_that_writes_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="expected files of a checkpoint, got no file"):
        run_forked(1, rank_main, tmp_path, own(f"{HERE}.train", steps=4, wrong="nothing"))


def meets_by_itself(ctx: RunContext, steps: int) -> None:
    """As a script for torchrun does, by the variables alone."""
    import os

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor(ctx.rank + 1)
    dist.all_reduce(total)
    assert total.item() == 3
    assert int(os.environ["LOCAL_RANK"]) == ctx.local_rank
    assert not ctx.should_stop(steps)
    dist.destroy_process_group()
    raise SystemExit(0)


@pytest.mark.ranks
def test_a_script_for_torchrun_meets_without_a_port(tmp_path: Path) -> None:
    config = own(f"{HERE}.meets_by_itself")
    assert run_forked(2, rank_main, tmp_path, config) == [EXIT_FINISHED] * 2
    assert seen(tmp_path, Kind.FINISH, 1)[0]["step"] == 3


@pytest.mark.ranks
def test_the_function_in_the_document_trains_and_goes_on(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "own-training-code.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_training.py").write_text(code)
    config = own("my_training.main", steps=6)
    ends = [
        run_forked(2, rank_main, tmp_path / "run", config, stop, str(tmp_path))
        for stop in (3, None)
    ]
    assert ends == [[EXIT_STOPPED] * 2, [EXIT_FINISHED] * 2]
    assert [event["step"] for event in seen(tmp_path / "run", Kind.RESUME)] == [4]
    assert [event["step"] for event in seen(tmp_path / "run", Kind.STEP)] == [1, 2, 3, 4, 5, 6]


def test_the_shares_of_a_step_are_its_samples_at_any_number_of_ranks() -> None:
    from submitrain.train.data.order import UnitOrder
    from submitrain.train.user_function.context import DataOrder

    def consumed(world_size: int) -> list[list[int]]:
        ranks = [DataOrder(UnitOrder(10, 7, True), r, world_size) for r in range(world_size)]
        return [sorted(i for one in ranks for i in one.of_step(step, 4)) for step in range(5)]

    assert consumed(1) == consumed(3) == consumed(8)
    assert sorted(i for step in consumed(2) for i in step) == sorted([*range(10)] * 2)
