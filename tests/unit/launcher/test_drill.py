"""The pure half of a drill: what is offered where, what it changes, how it is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from submitrain.attempts import Action, Attempt, Cause
from submitrain.config import RunConfig
from submitrain.errors import UserError
from submitrain.launcher.cli.main import main
from submitrain.launcher.drill.compare import Comparison
from submitrain.launcher.drill.plan import (
    Measured,
    pace_of,
    paced,
    settings_of,
    shrunk,
    time_limit_overrides,
)
from submitrain.launcher.drill.report import sentence
from submitrain.launcher.drill.result import CONTROL, UNDISTURBED, Injection, Outcome, judged
from submitrain.launcher.drill.scenarios import CATALOGUE, Expected, Place, Scenario, Steps, choose
from tests.tiny import tiny_config

BY_ID = {one.id: one for one in CATALOGUE}


def place(cluster: str = "local", **slurm: Any) -> Place:
    """Two nodes of two ranks."""
    config = RunConfig.model_validate({"slurm": {"nodes": 2, "ntasks_per_node": 2, **slurm}})
    return Place(cluster, config)


def names(scenarios: list[Scenario]) -> set[str]:
    return {one.id for one in scenarios}


def test_the_usual_drill_holds_what_a_run_survives_here() -> None:
    everywhere = {"kill", "save-kill", "corrupt", "stop", "time-limit"}
    assert names(choose(None, place())) >= everywhere
    assert "requeue" not in names(choose(None, place()))
    assert names(choose(None, place("slurm"))) >= everywhere | {"requeue"}
    assert names(choose(None, place("slurm", requeue=False))).isdisjoint({"requeue", "time-limit"})


def test_what_is_not_repaired_by_design_must_be_asked_for() -> None:
    assert "exception" not in names(choose(None, place()))
    assert "exception" in names(choose("all", place()))
    assert [one.id for one in choose("exception, kill,kill", place())] == ["exception", "kill"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("lunch", "got lunch; --list"),
        ("", "got nothing"),
        ("kill,requeue", "requeue is not possible here: there is no queue"),
    ],
)
def test_a_wrong_choice_is_refused(asked: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(asked, place())


@pytest.mark.parametrize("total", [8, 9, 20, 100])
def test_faults_fall_between_saves_and_inside_the_run(total: int) -> None:
    steps = Steps.of(total)
    assert steps.save_every < steps.save < steps.middle < 3 * steps.save_every
    assert 3 * steps.save_every < steps.late <= total
    for one in CATALOGUE:
        for fault in one.faults(place(), steps):
            assert 1 < (fault.step or 0) <= total
            assert fault.rank == 3


def test_every_scenario_expects_causes_that_the_supervisor_knows_of() -> None:
    known = {str(cause) for cause in Cause} | {"hung", "loss_spike"}
    assert all(one.causes <= known for one in CATALOGUE)
    assert all(
        one.faults(place(), Steps.of(20)) or one.action or one.short_time_limit for one in CATALOGUE
    )


def as_dict(overrides: tuple[str, ...]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in overrides)


def test_the_users_configuration_is_shortened_and_nothing_else_of_training_changes() -> None:
    config = RunConfig.model_validate(
        {
            "step_scheduler": {"num_epochs": 3, "warmup_steps": 100, "global_batch_size": 64},
            "validation_dataset": {"num_samples_limit": 512},
            "wandb": {"project": "p"},
            "slurm": {"time": "24:00:00"},
        }
    )
    changed = as_dict(settings_of(config, steps=20, shrink=False)[0])
    assert changed == {
        "step_scheduler.max_steps": "20",
        "step_scheduler.num_epochs": "none",
        "step_scheduler.ckpt_every_steps": "5",
        "step_scheduler.val_every_steps": "10",
        "step_scheduler.warmup_steps": "5",
        "validation_dataset.num_samples_limit": "64",
        "checkpoint.enabled": "true",
        "checkpoint.keep_last_n_checkpoints": "3",
        "checkpoint.save_consolidated": "never",
        "sample": "none",
        "logging.log_every_steps": "1",
        "logging.log_sample_ids": "true",
        "slurm.time": "3600s",
        "wandb.enabled": "false",
    }


def test_a_plain_configuration_keeps_its_short_time_and_its_warm_up() -> None:
    config = RunConfig.model_validate(
        {"lr_scheduler": {"lr_warmup_steps": 4}, "slurm": {"time": "10m"}}
    )
    changed = as_dict(settings_of(config, steps=20, shrink=False)[0])
    assert changed["slurm.time"] == "600s"
    assert not any("warmup" in key or "val" in key or "wandb" in key for key in changed)
    longer = RunConfig.model_validate({"lr_scheduler": {"lr_warmup_steps": 40}})
    assert (
        as_dict(settings_of(longer, steps=20, shrink=False)[0])["lr_scheduler.lr_warmup_steps"]
        == "5"
    )


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UserError, match="at least 8"):
        settings_of(RunConfig(), steps=7, shrink=False)


LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "llama": (
        LLAMA_8B,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "hidden_size": 512,
            "intermediate_size": 1792,
        },
    ),
    "small heads": (
        {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 2},
        {"num_attention_heads": 4, "hidden_size": 256},
    ),
    "gpt2": ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12}, {"n_layer": 2}),
    "layers of several types": (
        {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 9, "layer_types": []},
        {},
    ),
    "small": ({"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_shrunk_within_its_family(name: str) -> None:
    model, expected = MODELS[name]
    smaller, warnings = shrunk(model)
    assert smaller == expected
    assert bool(warnings) == (not expected)
    after = {**model, **smaller}
    if heads := after.get("num_attention_heads"):
        assert after["hidden_size"] % heads == 0
        assert heads % after.get("num_key_value_heads", heads) == 0
        assert after["hidden_size"] // heads == model["hidden_size"] // model["num_attention_heads"]


def test_a_model_that_is_only_named_keeps_its_size_with_a_warning() -> None:
    overrides, warnings = settings_of(RunConfig(), steps=20, shrink=True)
    assert "not given as an inline model.config" in warnings[0]
    assert not any("model" in text for text in overrides)


QUICK = Measured(total_s=12.0, started_s=6.0, steps_s=1.0, step_s=0.05)
SLOW = Measured(total_s=900.0, started_s=200.0, steps_s=600.0, step_s=30.0)


@pytest.mark.parametrize("measured", [QUICK, SLOW])
def test_a_short_time_limit_stops_the_first_stretch_in_its_middle(measured: Measured) -> None:
    steps = Steps.of(20)
    scenario = BY_ID["time-limit"]
    pace_s = pace_of(scenario, measured, steps)
    changed = as_dict(
        tuple(time_limit_overrides(measured, configured_s=3600, pace_s=pace_s, steps=steps))
    )
    limit_s = int(changed["slurm.time"].removesuffix("s"))
    stop_s = limit_s - int(changed["resilience.stop_lead_s"])
    assert limit_s % 60 == 0
    ends_s = measured.started_s + measured.steps_s + 20 * pace_s
    for jitter in (0.7, 1.0, 1.3):  # of the start
        assert jitter * measured.started_s < stop_s < ends_s + (jitter - 1) * measured.started_s
    # and the second stretch finishes what is left, even if it starts slowly
    assert 1.3 * measured.started_s + 0.4 * (ends_s - measured.started_s) < stop_s


def test_only_quick_steps_are_paced_and_only_where_it_helps() -> None:
    steps = Steps.of(20)
    assert pace_of(BY_ID["kill"], QUICK, steps) == 0
    assert pace_of(BY_ID["stop"], SLOW, steps) == 0
    pace_s = pace_of(BY_ID["stop"], QUICK, steps)
    (fault,) = paced(BY_ID["stop"], pace_s, steps)
    left = steps.total - steps.middle
    assert fault.seconds * left >= 5.0, "enough time for a signal to arrive"
    assert fault.step == steps.middle
    assert fault.times >= steps.total
    assert paced(BY_ID["kill"], 0.0, steps) == ()


def attempt(number: int = 1, cause: str = "rank_died", action: str = "restart") -> Attempt:
    return Attempt(
        number,
        "7",
        Cause(cause),
        Action(action),
        0,
        7,
        1.0,
        3.0,
        "because",
        world_size=2,
        noticed_at=2.0,
    )


HIT = Injection("kill at step", 2.0, 8, 1, 1, "node2")
GOOD = Outcome(
    id="kill",
    what="a rank is killed",
    folder="/runs/kill",
    state="finished",
    why="",
    duration_s=9.0,
    injections=(HIT,),
    attempts=(attempt(), attempt(2, "finished", "done")),
    recoveries=(),
    rejected=(),
    comparison=Comparison(20),
    losses=((1, 3.0),),
)
OFF = Comparison(20, different=(9,), largest_relative=1e-6)
CALM = replace(GOOD, id=UNDISTURBED, injections=(), comparison=None, ok=True)

JUDGED: dict[str, tuple[Outcome, str, Comparison | None, bool, str, str]] = {
    # outcome, scenario, control -> ok, words of the verdict, words of the advice
    "same": (GOOD, "kill", None, True, "bit for bit", ""),
    "same, taken for something else": (
        replace(GOOD, attempts=(attempt(cause="launch_failed"),)),
        "kill", None, True, "classified as launch_failed, expected rank_died", "",
    ),
    "did not happen": (
        replace(GOOD, injections=()),
        "kill", None, False, "did not happen; the run finished", "--steps",
    ),
    "did not come back": (
        replace(GOOD, state="failed", why="crash loop"),
        "kill", None, False, "did not come back: failed (crash loop)", "diagnose /runs/kill",
    ),
    "interrupted": (replace(GOOD, state="interrupted"), "kill", None, False, "interrupted", ""),
    "another curve, not checked": (
        replace(GOOD, comparison=OFF), "kill", None, False, "other numbers in step 9", "",
    ),
    "another curve where it should not be": (
        replace(GOOD, comparison=OFF), "kill", Comparison(20), False, "1.0e-06", "not exact",
    ),
    "another curve where all curves differ": (
        replace(GOOD, comparison=OFF),
        "kill", replace(OFF, largest_relative=2e-5), False, "1.0e-06", "2.0e-05",
    ),
    "at another number of ranks": (
        replace(GOOD, comparison=Comparison(20, rescaled=(9,), largest_relative=1e-7)),
        "kill", None, True, "at another number of ranks in step 9", "",
    ),
    "stopped as it should": (
        replace(GOOD, state="failed", why="boom", attempts=(attempt(cause="program_error"),)),
        "exception", None, True, "stopped at once, as it should: boom", "",
    ),
    "survived what it should not": (GOOD, "exception", None, False, "should have stopped", "diag"),
    "goes on otherwise": (
        replace(GOOD, comparison=OFF, attempts=(attempt(cause="not_finite"),)),
        "nan", None, True, "finished", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGED)
def test_a_run_is_judged_by_what_it_should_have_done(name: str) -> None:
    outcome, scenario, control, ok, verdict, advice = JUDGED[name]
    found = judged(outcome, BY_ID[scenario], control=control)
    assert found.ok is ok
    assert verdict in found.result
    assert advice in found.advice
    assert bool(advice) == bool(found.advice)


def test_the_undisturbed_run_must_finish() -> None:
    assert judged(replace(CALM, ok=False), None, control=None).ok
    failed = judged(replace(CALM, state="failed", why="no disk"), None, control=None)
    assert not failed.ok
    assert "no disk" in failed.result
    assert sentence([failed]).startswith("No result")


def test_the_last_sentence_counts() -> None:
    good, bad = replace(GOOD, ok=True), replace(GOOD, id="hang", ok=False)
    assert sentence([CALM, good]).startswith("The fault ended as promised")
    assert "bit for bit" in sentence([CALM, good, good])
    assert "1 of 2 faults did not end as promised: hang." in sentence([CALM, good, bad])
    other = replace(good, comparison=OFF)
    assert "bit for bit" not in sentence([CALM, other])
    assert sentence([CALM, good], unfinished="interrupted").startswith(
        "Interrupted; so far the fault"
    )
    assert sentence([], unfinished="interrupted").startswith("No result: interrupted")
    assert sentence([CALM], unfinished="still running") == (
        "Still running; so far no fault has been injected yet."
    )
    control = replace(GOOD, id=CONTROL, ok=False)
    assert sentence([CALM, good, control]).startswith("The fault ended")


def test_only_scenarios_that_should_be_the_same_are_compared() -> None:
    assert {one.id for one in CATALOGUE if one.expected is not Expected.SAME} == {
        "nan",
        "exception",
    }


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration file of two ranks."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path)))
    return str(path)


def test_the_list_says_what_is_possible_here(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["drill", config, "--cluster", "local", "--list"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(one.id in shown and one.what in shown for one in CATALOGUE)
    assert main([*command, "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["kill"]["default"] is True
    assert rows["requeue"]["why_not"] == "there is no queue without Slurm"
    assert not (Path(config).parent / "runs").exists(), "nothing was started"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "3"], "--steps: expected at least 8"),
        (["--faults", "lunch"], "--faults: expected all or some of kill"),
        (["optimizer.lr=fast"], "optimizer.lr"),
        (["runs_dir=tiny.yaml"], "runs_dir: expected a folder that can be written"),
    ],
)
def test_wrong_input_starts_nothing_and_exits_with_2(
    config: str,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(config).parent)
    assert main(["drill", config, "--cluster", "local", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (Path(config).parent / "runs").exists()
