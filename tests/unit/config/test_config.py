"""Reading a configuration: values, overrides, placeholders, what is written and read back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.config import RunConfig
from submitrain.config.document import dump_yaml, parse_value
from submitrain.config.resolve import load_resolved, secret_environment
from submitrain.config.sections import DatasetConfig
from submitrain.config.types import format_duration, parse_duration_s
from submitrain.errors import ConfigError
from submitrain.launcher.plan.config import LoadedConfig, load_config
from submitrain.launcher.plan.plan import make_plan
from tests.config_parts import BASE, SMALL, load, write
from tests.paths import TESTS

HERE = TESTS
FAMILY = HERE / "data" / "automodel_4x8.yaml"
SECRETS = {"HF_TOKEN": "hf-value", "WANDB_API_KEY": "wandb-value"}


@pytest.fixture(scope="module")
def family() -> LoadedConfig:
    return load_config(FAMILY, environ=SECRETS)


def test_a_configuration_of_the_family_loads_unchanged(family: LoadedConfig) -> None:
    config = family.config
    assert config.model.target == "hf_causal_lm"
    assert config.distributed.target == "fsdp2"
    assert config.distributed.dp_size is None
    assert config.dataset.target == "text_instruction"
    assert config.model.torch_dtype == "bfloat16"
    assert config.optimizer.lr == 1e-4
    assert config.optimizer.extra == {"betas": [0.9, 0.95]}
    assert config.slurm.time == 24 * 3600
    assert config.checkpoint.save_consolidated == "never"
    assert config.max_grad_norm == 1.0
    assert config.batch().text == "2 x 16 x 32 = 1024"


def test_every_key_of_the_family_file_is_kept(family: LoadedConfig) -> None:
    given_keys = yaml.safe_load(FAMILY.read_text())
    written = yaml.safe_load(family.text)
    for section, keys in given_keys.items():
        if isinstance(keys, dict):
            assert set(keys) <= set(written[section]), section


@pytest.mark.parametrize(
    "name",
    [
        "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
        "nemo_automodel.NeMoAutoModelForCausalLM.from_config",
        "nemo_automodel.components._transformers.auto_model.NeMoAutoModelForCausalLM.from_pretrained",
        "nemo_automodel._transformers.NeMoAutoModelForCausalLM.from_pretrained",
        "transformers.AutoModelForCausalLM.from_pretrained",
        "hf_causal_lm",
    ],
)
def test_spellings_of_the_built_in_model(name: str) -> None:
    assert load({"model": {"_target_": name}}).config.model.target == "hf_causal_lm"


@pytest.mark.parametrize(
    "name",
    [
        "nemo_automodel.components.distributed.nvfsdp.NVFSDPManager",
        "nemo_automodel.components.distributed.fsdp2.FSDP2Manager",
        "nemo_automodel.distributed.fsdp2.FSDP2Manager",
    ],
)
def test_spellings_of_the_built_in_sharding(name: str) -> None:
    assert load({"distributed": {"_target_": name}}).config.distributed.target == "fsdp2"


@pytest.mark.parametrize("name", ["TextInstructionDataset", "ColumnMappedTextInstructionDataset"])
def test_spellings_of_the_built_in_data(name: str) -> None:
    path = f"nemo_automodel.components.datasets.llm.module.{name}"
    sections = {"dataset": {"_target_": path, "dataset_name": "a/b"}}
    assert load(sections).config.dataset.target == "text_instruction"


def test_from_config_does_not_load_weights() -> None:
    sections = {
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_config",
            "pretrained_model_name_or_path": "a/b",
            "config": None,
        }
    }
    with pytest.raises(ConfigError, match="from_config"):
        load(sections)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("24:00:00", "24:00:00"),
        ("12:30", "12:30"),
        ("007", "007"),
        ("1_000", 1000),
        ("0x10", 16),
        ("none", None),
        ("None", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("NO", "NO"),
        ("true", True),
        ("2025-01-01", "2025-01-01"),
        ("nonesuch", "nonesuch"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    assert parse_value(text, "test")[0] == value
    assert type(parse_value(text, "test")[0]) is type(value)


_TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))
    | st.sampled_from(["none", "24:00:00", "1e-4", "0o7", "1_0", "yes", "${A}", "007", "=", "<<"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z_]{1,8}"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(_TREES)
@settings(max_examples=200, deadline=None)
def test_written_yaml_reads_back_the_same(tree: Any) -> None:
    assert parse_value(dump_yaml(tree), "test")[0] == tree


def test_text_may_look_like_a_number(tmp_path: Path) -> None:
    text = BASE + "slurm: {job_name: 1e5, account: 007, mem: 0, comment: no, nodelist: 12}\n"
    slurm = load_config(write(tmp_path, text)).config.slurm
    assert (slurm.job_name, slurm.account, slurm.mem, slurm.comment, slurm.nodelist) == (
        "1e5",
        "007",
        "0",
        "no",
        "12",
    )


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, BASE + "slurm:\npeft: none\n")).config.slurm.nodes.max == 1


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = (
        "model: {config: {model_type: llama}, train_tokenizer_vocab_size: 500}\n"
        "dataset: &data\n  _target_: python_stdlib\n  max_length: 128\n"
        "validation_dataset:\n  <<: *data\n  max_length: 64\n"
    )
    config = load_config(write(tmp_path, text)).config
    assert config.validation_dataset is not None
    assert (config.dataset.max_length, config.validation_dataset.max_length) == (128, 64)


def test_overrides_win_over_changes_and_those_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "slurm: {nodes: 2, qos: a, partition: p}\n")
    config = load_config(path, ["slurm.nodes=4"], {"slurm__nodes": 3, "slurm": {"qos": "b"}}).config
    assert (config.slurm.nodes.max, config.slurm.qos, config.slurm.partition) == (4, "b", "p")


def test_overrides_reach_lists_and_components_and_take_yaml() -> None:
    overrides = [
        "wandb.tags=[a, b]",
        "wandb.tags.1=c",
        "optimizer.betas=[0.9, 0.99]",
        "optimizer.lr=3e-4",
        "slurm.time=1-12",
        "slurm.job_name=",
    ]
    config = load_config({**SMALL, "slurm": {"job_name": "x"}}, overrides).config
    assert config.wandb is not None
    assert config.wandb.tags == ["a", "c"]
    assert config.optimizer.extra == {"betas": [0.9, 0.99]}
    assert config.optimizer.lr == 3e-4
    assert config.slurm.time == 36 * 3600
    assert config.slurm.job_name is None


def test_an_override_replaces_another_spelling_of_its_key() -> None:
    source = {**SMALL, "dataset": {"_target_": "python_stdlib", "seq_length": 64}}
    assert load_config(source, ["dataset.max_length=32"]).config.dataset.max_length == 32


def test_overriding_leaves_the_given_mapping_alone() -> None:
    source = {**SMALL, "slurm": {"nodes": 1}}
    load_config(source, ["slurm.nodes=2"])
    assert source["slurm"] == {"nodes": 1}


def test_a_run_config_loads_to_itself() -> None:
    config = load({"slurm": {"time": "90m", "env": {"A": "${B}"}}}, environ={"B": "1"}).config
    assert load_config(config, environ={"B": "1"}).config == config


def test_a_typed_section_may_be_a_change() -> None:
    data = DatasetConfig(target="python_stdlib", max_length=99)
    assert load_config(SMALL, changes={"dataset": data}).config.dataset.max_length == 99


def test_a_class_is_written_as_its_import_path() -> None:
    with pytest.raises(ConfigError, match=r"got yaml\.dumper\.SafeDumper \(a class\)"):
        load({"optimizer": {"_target_": yaml.SafeDumper}})


def test_placeholders_are_read_for_use_and_kept_in_the_text(tmp_path: Path) -> None:
    text = BASE + (
        "runs_dir: ${ROOT}/runs\n"
        "slurm: {nodes: '${NODES}', account: '${oc.env:ACCOUNT,none}', hf_token: '${HF_TOKEN}'}\n"
        "optimizer: {betas: [0.9, '${oc.env:BETA,0.95}']}\n"
    )
    environ = {"ROOT": "/data", "NODES": "3", "HF_TOKEN": "swordfish"}
    loaded = load_config(write(tmp_path, text), environ=environ)
    assert loaded.config.runs_dir == "/data/runs"
    assert loaded.config.slurm.nodes.max == 3
    assert loaded.config.slurm.account is None
    assert loaded.config.optimizer.extra == {"betas": [0.9, 0.95]}
    assert loaded.config.slurm.hf_token == "${HF_TOKEN}"
    written = yaml.safe_load(loaded.text)
    assert written["runs_dir"] == "${ROOT}/runs"
    assert written["slurm"]["nodes"] == "${NODES}"
    assert written["optimizer"]["betas"] == [0.9, "${oc.env:BETA,0.95}"]
    assert "swordfish" not in loaded.text


def test_shell_and_prose_may_hold_dollar_signs() -> None:
    config = load(
        {"slurm": {"setup": ['export A="${B:-c}"']}, "sample": {"prompt": "Say ${x y}"}}
    ).config
    assert config.slurm.setup == ['export A="${B:-c}"']
    assert config.sample is not None and config.sample.prompt == "Say ${x y}"


@pytest.mark.parametrize("name", ["TOKENIZER_DIR", "KEYBOARD", "MONKEY", "MAX_TOKENS_PATH"])
def test_a_variable_that_only_resembles_a_secret_may_stand_in_sbatch_options(name: str) -> None:
    config = load({"slurm": {"comment": f"${{{name}}}"}}, environ={name: "x"}).config
    assert config.slurm.comment == "x"


def test_a_commit_hash_is_no_secret() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = f"/cache/snapshots/{commit}/files"
    sections = {
        "model": {"revision": commit, "tokenizer": path, "train_tokenizer_vocab_size": None}
    }
    config = load(sections).config
    assert (config.model.revision, config.model.tokenizer) == (commit, path)


@pytest.mark.parametrize("source", ["family", "small"])
def test_the_text_loads_back_to_an_equal_configuration(source: str, tmp_path: Path) -> None:
    loaded = load_config(FAMILY, environ=SECRETS) if source == "family" else load()
    path = tmp_path / "config.yaml"
    path.write_text(loaded.text)
    assert load_resolved(path, SECRETS) == loaded.config
    again = load_config(path, environ=SECRETS)
    assert (again.text, again.digest, again.name) == (loaded.text, loaded.digest, loaded.name)


def test_the_text_holds_every_key_with_its_default() -> None:
    written = yaml.safe_load(load().text)
    for name, section in RunConfig.model_json_schema()["$defs"].items():
        if name == "SlurmConfig":
            assert set(section["properties"]) == set(written["slurm"])
    assert set(written) == set(RunConfig.model_fields)


def test_a_data_set_class_gets_back_only_the_keys_that_were_given(tmp_path: Path) -> None:
    data = {"_target_": "tests.tiny.write_samples", "path": "x", "count": 3}
    loaded = load_config({**SMALL, "dataset": data})
    path = tmp_path / "config.yaml"
    path.write_text(loaded.text)
    resolved = load_resolved(path, {})
    assert resolved == loaded.config
    assert resolved.dataset.model_fields_set == loaded.config.dataset.model_fields_set


def test_a_run_folders_components_were_checked_at_launch(tmp_path: Path) -> None:
    """Resuming from another folder must not fail over an import path of the first one."""
    (tmp_path / "record.json").write_text("{}")
    path = tmp_path / "config.yaml"
    path.write_text(load().text.replace("torch.optim.AdamW", "lib_of_another_folder.Adam"))
    assert load_config(path).config.optimizer.target == "lib_of_another_folder.Adam"


def test_the_digest_ignores_where_a_run_lives_and_nothing_else() -> None:
    digest = load().digest
    assert load({"name": "other", "runs_dir": "/x", "cluster": "local"}).digest == digest
    assert load({"seed": 7}).digest != digest
    assert load({"slurm": {"nodes": 2}}).digest != digest


def test_the_digest_does_not_depend_on_order_or_spelling() -> None:
    one = load_config({**SMALL, "optimizer": {"lr": 1e-3, "eps": 1e-6}})
    two = load_config(
        {"optimizer": {"eps": 1e-6, "lr": "0.001"}, **dict(reversed(list(SMALL.items())))}
    )
    assert one.digest == two.digest


def test_a_name_is_made_fit_for_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "my run (2).yaml"
    path.write_text(BASE)
    assert load_config(path).name == "my-run-2-"
    assert load({"slurm": {"job_name": "a/b c"}}).name == "a-b-c"


def test_secrets_reach_the_ranks_environment_only() -> None:
    sections = {
        "slurm": {
            "hf_token": "${HF_TOKEN}",
            "wandb_key": "${oc.env:WANDB_API_KEY,}",
            "hf_home": "/cache",
            "env": {"NCCL_DEBUG": "WARN", "MY_API_KEY": "${MY_API_KEY}"},
        }
    }
    environ = {"HF_TOKEN": "swordfish", "MY_API_KEY": "opensesame"}
    loaded = load(sections, environ=environ)
    assert secret_environment(loaded.config, environ) == {
        "NCCL_DEBUG": "WARN",
        "MY_API_KEY": "opensesame",
        "HF_HOME": "/cache",
        "HF_TOKEN": "swordfish",
    }
    assert "swordfish" not in repr(loaded) and "opensesame" not in repr(loaded)


def test_a_secret_that_the_ranks_cannot_see_is_an_error() -> None:
    config = load({"slurm": {"hf_token": "${HF_TOKEN}"}}, environ={"HF_TOKEN": "x"}).config
    with pytest.raises(ConfigError, match=r"slurm\.hf_token: the environment variable HF_TOKEN"):
        secret_environment(config, {})


@given(st.integers(1, 400 * 86400))
def test_a_duration_survives_being_written(seconds: int) -> None:
    assert parse_duration_s(format_duration(seconds)) == seconds


@given(
    days=st.integers(0, 99),
    hours=st.integers(0, 23),
    minutes=st.integers(0, 59),
    seconds=st.integers(1, 59),
)
def test_durations_mean_what_sbatch_says(days: int, hours: int, minutes: int, seconds: int) -> None:
    """sbatch(1): minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    whole = ((days * 24 + hours) * 60 + minutes) * 60
    assert parse_duration_s(f"{days}-{hours}:{minutes:02d}:{seconds:02d}") == whole + seconds
    assert parse_duration_s(f"{hours}:{minutes:02d}:{seconds:02d}") == (
        whole - days * 86400 + seconds
    )
    assert parse_duration_s(f"{minutes}:{seconds:02d}") == minutes * 60 + seconds
    assert (
        parse_duration_s(f"{days}-{hours}:{minutes + 1}")
        == whole - minutes * 60 + (minutes + 1) * 60
    )
    assert parse_duration_s(f"{days}-{hours + 1}") == (days * 24 + hours + 1) * 3600
    assert parse_duration_s(f"{minutes + 1}") == (minutes + 1) * 60 == parse_duration_s(minutes + 1)


@pytest.mark.parametrize("word", ["0", "0:00", "-5", "1:2:3:4", "1-", "a", "5 parsecs", "", "1.5"])
def test_what_is_no_duration_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration_s(word)


def test_loading_a_configuration_imports_no_torch() -> None:
    code = (
        "import sys; from submitrain.launcher.plan.config import load_config;"
        "from submitrain.launcher.plan.plan import make_plan;"
        f"loaded = load_config({str(FAMILY)!r}, environ={SECRETS!r});"
        "make_plan(loaded, cluster='slurm', gpus_available=True);"
        "heavy = {'torch', 'transformers', 'numpy', 'submitit'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "least", "most"), [("3", 3, 3), ("2-4", 2, 4), ('"2 - 4"', 2, 4), ("4-4", 4, 4)]
)
def test_nodes_are_a_number_or_a_range_and_come_back_as_written(
    tmp_path: Path, text: str, least: int, most: int
) -> None:
    loaded = load_config(write(tmp_path, BASE + f"slurm: {{nodes: {text}, ntasks_per_node: 2}}\n"))
    assert (loaded.config.slurm.nodes.min, loaded.config.slurm.nodes.max) == (least, most)
    assert loaded.config.world_size == 2 * most
    again = load_config(write(tmp_path, loaded.text))
    assert again.config.slurm.nodes == loaded.config.slurm.nodes
    assert again.digest == loaded.digest


STEPS = "step_scheduler: {max_steps: 240, warmup_steps: 20}\n"


def test_a_files_warmup_is_shortened_with_a_shorter_run_and_said(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, BASE + STEPS), ["step_scheduler.max_steps=6"], environ={})
    assert loaded.config.warmup_steps == 1  # the same share of the run, at least one step
    [warning] = loaded.warnings
    assert "step_scheduler.warmup_steps is 20" in warning
    assert "a.yaml:3" in warning and "shortened to 1" in warning
    assert "warmup_steps: 1\n" in loaded.text
    plan = make_plan(loaded, cluster="local", gpus_available=False)
    assert warning in plan.warnings


@pytest.mark.parametrize("steps", [20, 240, 300])
def test_a_warmup_that_fits_stays(tmp_path: Path, steps: int) -> None:
    overrides = [f"step_scheduler.max_steps={steps}"]
    loaded = load_config(write(tmp_path, BASE + STEPS), overrides, environ={})
    assert (loaded.config.warmup_steps, loaded.warnings) == (20, ())


@pytest.mark.parametrize("key", ["step_scheduler.warmup_steps", "lr_scheduler.lr_warmup_steps"])
def test_a_warmup_that_was_overridden_too_is_refused(tmp_path: Path, key: str) -> None:
    steps = STEPS if key.startswith("step") else "step_scheduler: {max_steps: 240}\n"
    overrides = ["step_scheduler.max_steps=6", f"{key}=20"]
    with pytest.raises(ConfigError, match=f"{key}: expected at most step_scheduler.max_steps"):
        load_config(write(tmp_path, BASE + steps), overrides, environ={})


def test_a_warmup_is_shortened_for_changes_from_python_too() -> None:
    source = {**SMALL, "lr_scheduler": {"lr_warmup_steps": 30}}
    loaded = load_config(source, changes={"step_scheduler__max_steps": 20}, environ={})
    assert loaded.config.warmup_steps == 2
    assert "lr_scheduler.lr_warmup_steps is 30" in loaded.warnings[0]
