"""What is said of a configuration that is wrong: what, where, got, allowed, next step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from submitrain.errors import ConfigError
from submitrain.launcher.plan.config import load_config
from tests.config_parts import BASE, write

TOKEN = "hf_" + "a1B2" * 8
NODES = "an integer >= 1 and <= 100000 or a range such as 2-4"
WANDB = "0123456789abcdef" * 2 + "01234567"


@dataclass(frozen=True)
class Bad:
    """A bad input, and the parts that its message must have."""

    text: str
    says: tuple[str, ...]
    hides: str | None = None
    overrides: tuple[str, ...] = ()


BAD = {
    "unknown key": Bad(
        "slurm:\n  nods: 4\n", ("slurm.nods: unknown key", "did you mean slurm.nodes", ":4)")
    ),
    "unknown section": Bad(
        "slum: {nodes: 4}\n", ("slum: unknown key", "did you mean slurm?", ":3)")
    ),
    "alias misspelled": Bad(
        "checkpoint: {max_recent_checkpoint: 1}\n",
        ("checkpoint.max_recent_checkpoint", "did you mean checkpoint.max_recent_checkpoints?"),
    ),
    "key of another section": Bad(
        "slurm: {batch_size: 2}\n",
        ("slurm.batch_size: unknown key", "dataloader.batch_size", ":3)"),
    ),
    "key at the top level": Bad("nodes: 4\n", ("nodes: unknown key", "write slurm.nodes", ":3)")),
    "unknown key of a component": Bad(
        "distributed: {dpsize: 3}\n", ("distributed.dpsize: unknown key", "fsdp2", ":3)")
    ),
    "wrong type": Bad(
        "slurm:\n  nodes: four\n",
        (
            f"slurm.nodes: expected {NODES}, got 'four'",
            ":4)",
        ),
    ),
    "more nodes than there are": Bad(
        "slurm:\n  nodes: 99999999999999999999\n",
        (f"slurm.nodes: expected {NODES}, got 99999999999999999999", ":4)"),
    ),
    "a number over 64 bits": Bad(
        "slurm: {ntasks_per_node: 99999999999999999999}\n",
        ("slurm.ntasks_per_node: expected an integer >= 1, got 99999999999999999999", ":3)"),
    ),
    "zero nodes": Bad(
        "slurm:\n  nodes: 0\n",
        (
            f"slurm.nodes: expected {NODES}, got 0",
            "a.yaml:4)",
        ),
    ),
    "a range that runs backwards": Bad(
        "slurm: {nodes: 4-2}\n",
        (f"slurm.nodes: expected {NODES}, got '4-2'",),
    ),
    "a range from nothing": Bad(
        "slurm: {nodes: 0-2}\n",
        (f"slurm.nodes: expected {NODES}, got '0-2'",),
    ),
    "a fixed number of ranks in a range of nodes": Bad(
        "slurm: {nodes: 2-4}\ndistributed: {dp_size: 4}\n",
        ("distributed.dp_size: expected none with a range of nodes (2-4), got 4",),
    ),
    "copies that the lower end cannot hold": Bad(
        "slurm: {nodes: 3-4}\ndistributed: {dp_replicate_size: 2}\n",
        ("distributed.dp_replicate_size: expected a divisor of the world size 3",),
    ),
    "srun's nodes": Bad(
        'slurm: {srun_args: ["--nodelist=n1"]}\n',
        ("slurm.srun_args.0: --nodelist is set by submitrain itself",),
    ),
    "negative nodes": Bad(
        "slurm: {nodes: -2}\n",
        (f"slurm.nodes: expected {NODES}, got -2",),
    ),
    "truth for a number": Bad(
        "slurm: {nodes: true}\n",
        (f"slurm.nodes: expected {NODES}, got true",),
    ),
    "fraction of a node": Bad(
        "slurm: {nodes: 1.5}\n",
        (f"slurm.nodes: expected {NODES}, got 1.5",),
    ),
    "choice": Bad(
        "lr_scheduler: {lr_decay_style: cos}\n",
        ("lr_scheduler.lr_decay_style: expected one of constant, linear, cosine, got 'cos'", ":3)"),
    ),
    "section that is a number": Bad(
        "slurm: 3\n", ("slurm: expected a mapping (key: value), got 3", ":3)")
    ),
    "item of a list": Bad(
        "slurm:\n  srun_args:\n    - [a]\n", ("slurm.srun_args.0: expected text, got a list", ":5)")
    ),
    "steps between checkpoints": Bad(
        "step_scheduler: {ckpt_every_steps: often}\n",
        (
            "step_scheduler.ckpt_every_steps: expected an integer >= 1 or auto or none, got "
            "'often'",
            ":3)",
        ),
    ),
    "no steps between checkpoints": Bad(
        "step_scheduler: {ckpt_every_steps: 0}\n",
        ("expected an integer >= 1 or auto or none, got 0", ":3)"),
    ),
    "automatic validation": Bad(
        "step_scheduler: {val_every_steps: auto}\n",
        ("step_scheduler.val_every_steps: expected an integer >= 1 or none, got 'auto'", ":3)"),
    ),
    "failures that never come": Bad(
        "resilience: {mttf: never}\n",
        ("resilience.mttf: expected a duration, got 'never'", ":3)"),
    ),
    "duration": Bad(
        "slurm: {time: tomorrow}\n",
        ("slurm.time: expected a duration, got 'tomorrow'", "24:00:00", ":3)"),
    ),
    "not finite": Bad(
        "optimizer: {lr: .inf}\n", ("optimizer.lr: expected a number > 0, got inf", ":3)")
    ),
    "required key": Bad(
        "sample: {max_new_tokens: 3}\n", ("sample.prompt: expected text, got nothing", ":3)")
    ),
    "batch arithmetic": Bad(
        "step_scheduler: {grad_acc_steps: 16, global_batch_size: 512}\n"
        "dataloader: {batch_size: 2}\nslurm: {nodes: 4, ntasks_per_node: 8}\n",
        ("step_scheduler.global_batch_size", "2 x 16 x 32 = 1024", "got 512", ":3)"),
    ),
    "said twice": Bad(
        "dataloader: {batch_size: 2}\nstep_scheduler: {local_batch_size: 4}\n",
        ("dataloader.batch_size", "step_scheduler.local_batch_size (4), got 2", ":3)"),
    ),
    "two spellings of one key": Bad(
        "validation_dataset: {_target_: python_stdlib, seq_length: 64, max_length: 64}\n",
        ("validation_dataset", "another spelling of the same key", ":3)"),
    ),
    "data-parallel size": Bad(
        "distributed: {dp_size: 3}\nslurm: {nodes: 2}\n",
        (
            "distributed.dp_size: expected none or the world size 2",
            "(nodes 2 x ntasks_per_node 1), got 3",
        ),
    ),
    "warm-up longer than the run": Bad(
        "step_scheduler: {max_steps: 10, warmup_steps: 20}\n",
        ("step_scheduler.warmup_steps: expected at most step_scheduler.max_steps (10), got 20",),
    ),
    "fewer GPUs than ranks": Bad(
        "slurm: {ntasks_per_node: 8, gpus_per_node: 4}\n",
        ("slurm.gpus_per_node: expected at least ntasks_per_node (8), got 4", ":3)"),
    ),
    "memory twice": Bad(
        "slurm: {mem: 64G, mem_per_cpu: 4G}\n", ("slurm.mem_per_cpu", "got both", ":3)")
    ),
    "mount": Bad(
        "slurm: {container_image: i, extra_mounts: [/data]}\n",
        ("slurm.extra_mounts.0: expected src:dst", "got '/data'", ":3)"),
    ),
    "line break in an sbatch option": Bad(
        'slurm: {comment: "a\\nrm -rf x"}\n', ("slurm.comment: expected one line of text", ":3)")
    ),
    "duplicate key": Bad(
        "slurm:\n  nodes: 2\n  time: 1h\n  nodes: 3\n",
        ("slurm.nodes: the key stands twice", "a.yaml:4 and", "a.yaml:6", "keep one"),
    ),
    "not YAML": Bad("slurm:\n  nodes: [1\n  time: 3\n", ("a.yaml:5:", "not YAML", "got `time: 3`")),
    "placeholder in braces": Bad(
        "optimizer: {lr: ${LR}}\n", ("a.yaml:3:18: not YAML", "put ${...} in quotes")
    ),
    "name that is no folder's": Bad(
        "name: a/b\n", ("name: expected text of the form [A-Za-z0-9]", "got 'a/b'", ":3)")
    ),
    "tab": Bad("slurm:\n\tnodes: 3\n", ("a.yaml:4:1: not YAML", "nodes: 3")),
    "control character": Bad("name: a\x07\n", ("a.yaml:3: not YAML", "special characters")),
    "tag": Bad(
        "name: !!python/name:os.system x\n", ("name: expected plain text", ":3)", "remove the tag")
    ),
    "missing variable": Bad(
        "slurm:\n  account: ${NO_SUCH_VARIABLE}\n",
        ("slurm.account: the environment variable NO_SUCH_VARIABLE is not set", "export", ":4)"),
    ),
    "missing secret": Bad(
        "slurm:\n  hf_token: ${NO_SUCH_TOKEN}\n",
        ("slurm.hf_token", "NO_SUCH_TOKEN is not set", ":4)"),
    ),
    "reference to another key": Bad(
        "name: ${model.name}\n", ("name: expected ${VAR}", "got '${model.name}'", ":3)")
    ),
    "bad value from a variable": Bad(
        "slurm: {nodes: '${NODES}'}\n",
        (f"slurm.nodes: expected {NODES}, got 'many' from ${{NODES}}",),
    ),
    "secret variable in a number": Bad(
        "optimizer: {lr: '${MY_KEY}'}\n",
        ("optimizer.lr: expected a number > 0, got ${MY_KEY} (value not shown)",),
        hides="swordfish",
    ),
    "literal token": Bad(
        f"slurm:\n  hf_token: {TOKEN}\n", ("slurm.hf_token", "${HF_TOKEN}", ":4)"), hides=TOKEN
    ),
    "literal token in the setup": Bad(
        f"slurm:\n  setup:\n    - export X={TOKEN}\n",
        ("slurm.setup.0", "(not shown)", ":5)"),
        hides=TOKEN,
    ),
    "literal wandb key": Bad(
        f"slurm: {{comment: key={WANDB}}}\n", ("slurm.comment", "(not shown)", ":3)"), hides=WANDB
    ),
    "literal secret in env": Bad(
        "slurm: {env: {OPENAI_API_KEY: opensesame}}\n",
        ("slurm.env.OPENAI_API_KEY", "(not shown)", ":3)"),
        hides="opensesame",
    ),
    "secret variable in the sbatch text": Bad(
        "slurm: {comment: '${MY_KEY}'}\n",
        ("slurm.comment: expected nothing secret, got ${MY_KEY}", "slurm.env.MY_KEY", ":3)"),
        hides="swordfish",
    ),
    "target that is no component": Bad(
        "optimizer: {_target_: os.system}\n",
        ("optimizer._target_", "torch.optim.AdamW", "got 'os.system'", ":3)"),
    ),
    "target that is no path": Bad(
        "optimizer: {_target_: AdamW}\n",
        ("optimizer._target_: expected an import path", "got 'AdamW'", ":3)"),
    ),
    "argument of a component": Bad(
        "optimizer: {beta: [0.9, 0.95]}\n",
        ("optimizer.beta", "did you mean betas?", "allowed: lr", ":3)"),
    ),
    "sharder that is not built": Bad(
        "distributed: {_target_: nemo_automodel.DDPManager}\n",
        ("distributed._target_: expected fsdp2, got 'nemo_automodel.DDPManager'", ":3)"),
    ),
    "tensor parallelism": Bad(
        "distributed: {tp_size: 2}\n", ("distributed.tp_size: expected 1 or none, got 2",)
    ),
    "dropping the last batch": Bad(
        "dataloader: {drop_last: true}\n", ("dataloader.drop_last: expected false",)
    ),
    "recipe": Bad(
        "recipe: PretrainRecipe\n", ("recipe: expected one of", "got 'PretrainRecipe'", ":3)")
    ),
    "later key": Bad("price: {h100: 2}\n", ("price: not in this version", ":3)")),
    "preflight": Bad(
        "preflight: {enabled: true}\n", ("preflight: expected one of off, quick, full", ":3)")
    ),
    "preflight of slurm": Bad(
        "slurm: {preflight: full}\n", ("slurm.preflight: write the top-level preflight", ":3)")
    ),
    "validation interval without data": Bad(
        "step_scheduler: {val_every_steps: 5}\n",
        ("step_scheduler.val_every_steps: expected a validation_dataset with it, got none", ":3)"),
    ),
    "prefetching without workers": Bad(
        "dataloader: {prefetch_factor: 2}\n",
        ("dataloader.prefetch_factor: expected num_workers > 0", ":3)"),
    ),
    "mounts without a container": Bad(
        "slurm: {extra_mounts: ['/a:/a']}\n",
        ("slurm.extra_mounts: expected slurm.container_image", ":3)"),
    ),
    "sbatch option that has a key": Bad(
        "slurm: {additional_parameters: {time: 5}}\n",
        ("slurm.additional_parameters.time", "write slurm.time", ":3)"),
    ),
    "sbatch option that does not exist": Bad(
        "slurm: {additional_parameters: {switch: 1}}\n",
        ("slurm.additional_parameters.switch", "did you mean switches?", ":3)"),
    ),
    "sbatch option that would lose the environment": Bad(
        "slurm: {additional_parameters: {export: NONE}}\n",
        ("slurm.additional_parameters.export: not allowed", "slurm.env", ":3)"),
    ),
    "override": Bad(
        "",
        (
            f"slurm.nodes: expected {NODES}, got 0",
            "(override slurm.nodes=0)",
        ),
        None,
        ("slurm.nodes=0",),
    ),
    "override of an unknown section": Bad(
        "",
        ("slurn: unknown key", "slurm?", "(override slurn.nodes=2)"),
        overrides=("slurn.nodes=2",),
    ),
    "override without a value": Bad(
        "", ("override slurm.nodes: expected section.key=value",), None, ("slurm.nodes",)
    ),
    "literal token in an override": Bad(
        "",
        ("slurm.hf_token: expected a placeholder", "(override slurm.hf_token=...)"),
        hides="opensesame",
        overrides=("slurm.hf_token=opensesame",),
    ),
    "literal token in what is not YAML": Bad(
        f"slurm: {{hf_token: {TOKEN}: }}}}\n", ("not YAML", "(not shown)"), hides=TOKEN
    ),
    "sample without an export": Bad(
        "sample: {prompt: a}\ncheckpoint: {save_consolidated: false}\n",
        ("sample: expected checkpoint.save_consolidated", ":3)"),
    ),
    "compile mode without compile": Bad(
        "compile: {mode: max-autotune}\n", ("compile.mode: expected compile.enabled true", ":3)")
    ),
    "two tokenizers": Bad(
        "",
        ("model.train_tokenizer_vocab_size: expected this or tokenizer, got both",),
        overrides=("model.tokenizer=gpt2",),
    ),
    "override with a plus": Bad(
        "",
        ("override +slurm.qos=a: expected section.key=value", "write slurm.qos=a"),
        None,
        ("+slurm.qos=a",),
    ),
    "override through a number": Bad(
        "", ("override seed.a=1: seed is no mapping",), None, ("seed=3", "seed.a=1")
    ),
    "override past the end of a list": Bad(
        "wandb: {tags: [a]}\n",
        ("override wandb.tags.1=b: wandb.tags is a list of 1",),
        None,
        ("wandb.tags.1=b",),
    ),
    "override that is not YAML": Bad("", ("override name=[a: not YAML",), None, ("name=[a",)),
    "override of an unknown key": Bad(
        "",
        ("slurm.node: unknown key; did you mean slurm.nodes? (override slurm.node=2)",),
        None,
        ("slurm.node=2",),
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_input_is_refused_with_what_where_got_and_next_step(bad: Bad, tmp_path: Path) -> None:
    environ = {"MY_KEY": "swordfish", "NODES": "many"}
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, BASE + bad.text), bad.overrides, environ=environ)
    message = str(caught.value)
    missing = [part for part in bad.says if part not in message]
    assert not missing, f"{message!r} does not say {missing}"
    assert len(caught.value.problems) == 1
    assert bad.hides is None or bad.hides not in message


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = BASE + "seed: -1\nslurm:\n  nodes: 0\n  tme: 3\noptimizer: {lr: 0}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), environ={})
    keys = [problem.split(":")[0] for problem in caught.value.problems]
    assert keys == ["seed", "slurm.nodes", "slurm.tme", "optimizer.lr"]


def test_an_unknown_key_does_not_hide_a_contradiction(tmp_path: Path) -> None:
    text = BASE + "distributed: {tp_size: 2}\nslurm: {nods: 1}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), environ={})
    assert len(caught.value.problems) == 2


def test_a_file_that_is_not_there_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").touch()
    with pytest.raises(
        ConfigError, match=r"tran\.yaml: no such file; did you mean .*train\.yaml\?"
    ):
        load_config(tmp_path / "tran.yaml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "got an empty file"),
        (b"# nothing\n", "got an empty file"),
        (b"- a\n", "expected a mapping of sections .* got a list"),
        (b"name: \xff\xfe\n", "expected UTF-8 text, got byte 0xff at offset 6"),
        (b"a: 1\n---\nb: 2\n", "not YAML: but found another document"),
    ],
)
def test_a_file_that_holds_no_configuration_is_refused(
    content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_config(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a YAML file, got a folder"):
        load_config(tmp_path)


def test_an_alias_that_contains_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an alias contains itself"):
        load_config(write(tmp_path, BASE + "wandb: {tags: &a [*a]}\n"))


def test_a_model_that_is_not_named_is_refused() -> None:
    with pytest.raises(ConfigError, match="model: expected pretrained_model_name_or_path"):
        load_config({"dataset": {"_target_": "python_stdlib"}})


def test_python_objects_that_yaml_cannot_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.betas: expected plain data"):
        load_config({"optimizer": {"betas": object()}})
