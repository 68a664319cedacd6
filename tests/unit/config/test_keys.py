"""Configurations of NeMo AutoModel: every key is accounted for, and what loads means the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from submitrain.config.automodel import translate
from submitrain.config.document import parse_document
from submitrain.errors import DataError
from submitrain.launcher.cli.main import main
from submitrain.launcher.plan.config import load_config
from submitrain.launcher.plan.keys import KeyAccount, KeyStatus, account
from submitrain.launcher.plan.prepare import prepare
from submitrain.train.data.columns import Pair, find_columns
from tests.paths import TESTS

OLD = TESTS / "data" / "automodel_4x8.yaml"
PRESENT = """\
recipe: TrainFinetuneRecipeForNextTokenPrediction
step_scheduler: {global_batch_size: 64, local_batch_size: 8, ckpt_every_steps: 1000}
dist_env: {backend: nccl, timeout_minutes: 1}
rng: {_target_: nemo_automodel.components.training.rng.StatefulRNG, seed: 1111, ranked: true}
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained
  pretrained_model_name_or_path: meta-llama/Llama-3.2-1B
compile: {enabled: false, mode: default, fullgraph: false, dynamic: true, backend: null}
distributed:
  {strategy: fsdp2, dp_size: none, tp_size: 1, cp_size: 1, activation_checkpointing: true}
loss_fn: {_target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy}
dataset:
  _target_: nemo_automodel.components.datasets.llm.chat_dataset.ChatDataset
  path_or_dataset_id: Open-Orca/OpenOrca
  split: train
packed_sequence: {packed_sequence_size: 0}
dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  collate_fn: {_target_: nemo_automodel.components.datasets.utils.default_collater}
  shuffle: false
optimizer: {_target_: torch.optim.Adam, betas: [0.9, 0.999], eps: 1e-8, lr: 1.0e-5, weight_decay: 0}
lr_scheduler: {lr_decay_style: cosine, min_lr: 1.0e-6}
ci: {recipe_owner: someone}
"""


@pytest.fixture(autouse=True)
def _tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "w")
    monkeypatch.setenv("HF_TOKEN", "h")


@pytest.fixture
def present(tmp_path: Path) -> Path:
    path = tmp_path / "present.yaml"
    path.write_text(PRESENT)
    return path


def statuses(told: list[KeyAccount]) -> dict[str, tuple[str, str]]:
    return {one.key: (str(one.status), one.why) for one in told}


def test_the_old_configuration_is_accepted_to_its_last_key() -> None:
    found = statuses(account(OLD))
    assert {fate for fate, _ in found.values()} == {"used", "aliased", "neutral"}
    assert found["model._target_"] == ("aliased", "built in: hf_causal_lm")
    assert found["distributed._target_"] == ("aliased", "built in: fsdp2")
    assert found["slurm.hf_token"] == ("used", "")


def test_the_old_configuration_is_planned_unchanged_with_its_warnings() -> None:
    plan = prepare(OLD, cluster="slurm", plan_only=True).plan
    assert (plan.global_batch_size, plan.batch) == (1024, "2 x 16 x 32 = 1024")
    assert any("validation_dataset is the training data" in line for line in plan.warnings)
    asked = {key: plan.sbatch[key] for key in ("nodes", "ntasks_per_node")}
    assert asked == {"nodes": 4, "ntasks_per_node": 8}


def test_a_present_configuration_loads_unchanged_and_says_the_same(present: Path) -> None:
    config = load_config(present).config
    assert (config.seed, config.distributed.timeout_s) == (1111, 60)
    assert config.distributed.backend == "nccl"
    assert config.training_optimizations.activation_checkpointing
    assert config.batch(8).text == "8 x 1 x 8 = 64"
    assert not config.packs


def test_every_key_of_a_present_configuration_is_accounted_for(present: Path) -> None:
    found = statuses(account(present))
    assert found["dist_env.timeout_minutes"] == ("aliased", "our distributed.timeout_s")
    assert found["rng.seed"] == ("aliased", "our seed")
    assert found["dataset.path_or_dataset_id"] == ("aliased", "our dataset.dataset_name")
    assert found["loss_fn._target_"][0] == found["ci.recipe_owner"][0] == "neutral"
    assert found["optimizer.eps"] == ("used", "")
    assert not [key for key, (fate, _) in found.items() if fate == "refused"]


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ("distributed.tp_size=2", "distributed.tp_size", "expected 1 or none, got 2"),
        ("loss_fn._target_=mine.Loss", "loss_fn._target_", "the loss is the mean cross-entropy"),
        ("rng.seed=x", "rng.seed", "expected an integer"),
        ("rng.ranked=false", "rng.ranked", "write the top-level seed"),
        ("distributed.strategy=ddp", "distributed.strategy", "the built-in fsdp2 takes no such k"),
        ("dataset._target_=nemo_automodel.a.HellaSwag", "dataset._target_", "a data set of NeMo A"),
        ("distributed.pp_size=4", "distributed.pp_size", "expected 1 or none, got 4"),
        ("fp8.enabled=true", "fp8.enabled", "unknown key"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_the_rest_is_still_told(
    present: Path, change: str, key: str, words: str
) -> None:
    told = account(present, [change])
    assert [one.key for one in told if one.status is KeyStatus.REFUSED] == [key]
    assert words in statuses(told)[key][1]


def test_their_reader_of_squad_is_ours_with_the_right_columns(present: Path) -> None:
    squad = "nemo_automodel.components.datasets.llm.squad.make_squad_dataset"
    changes = [f"dataset._target_={squad}", "dataset.truncation=true"]
    data = load_config(present, changes).config.dataset
    assert (data.target, data.extra) == ("text_instruction", {})
    columns = find_columns(["id", "context", "question", "answers"], data.column_mapping, where="x")
    row = {"context": "It rains.", "question": "Is it dry?", "answers": {"text": ["No", "no"]}}
    sample = columns.sample(row, where="row 0")
    assert sample == Pair("Is it dry?", "No", "It rains.", False)
    with pytest.raises(DataError, match=r"row 1: the row has no column 'answers\.text\.0'"):
        columns.sample({**row, "answers": {"text": []}}, where="row 1")
    found = statuses(account(present, changes))
    assert found["dataset._target_"][0] == "aliased"
    assert found["dataset.truncation"][0] == "neutral"


def test_all_refusals_are_told_at_once(present: Path) -> None:
    """Also those that a check finds only once another one is out of the way."""
    told = account(present, ["model.foo=1", "nonsense=1", "dataset._target_=json.loads"])
    refused = {one.key for one in told if one.status is KeyStatus.REFUSED}
    assert refused == {"model.foo", "nonsense", "dataset._target_"}


def test_both_spellings_of_one_setting_clash(present: Path) -> None:
    told = statuses(account(present, ["seed=1"]))
    assert told["rng.seed"][0] == "refused"
    assert told["seed"] == ("used", "")


def test_a_configuration_of_ours_is_not_touched() -> None:
    document = parse_document("seed: 1\ndistributed: {backend: gloo}\n", "mine.yaml")
    assert translate(document).document is document


@pytest.mark.parametrize(("change", "code"), [([], 0), (["distributed.tp_size=2"], 2)])
def test_the_command_tells_by_its_exit_code(
    change: list[str],
    code: int,
    present: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "submitrain.launcher.cli.commands.log_to_stderr", lambda: None
    )  # it outlives the test
    assert main(["plan", str(present), "--keys", *change]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("1 refused" if change else "0 refused")
    assert main(["plan", str(present), "--keys", "--json", *change]) == code
    told: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert told[0]["key"] == "recipe"
    assert {"key", "value", "fate", "why", "where"} == set(told[0])
