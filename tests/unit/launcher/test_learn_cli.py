"""``init``, ``explain``, ``schema``, ``completion``, help: the commands by which one learns."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from submitrain.config import RunConfig
from submitrain.config.document import read_document
from submitrain.config.schema import aliases, editor_schema, keys, section_class, sections
from submitrain.errors import UserError
from submitrain.launcher.cli.explain import (
    every_section,
    explain_key,
    key_docs,
    key_text,
    reference,
)
from submitrain.launcher.cli.main import EXAMPLES_OF
from submitrain.launcher.cli.main import build_parser as launcher_parser
from submitrain.launcher.plan.config import load_config
from submitrain.monitor.cli import EXAMPLES_OF as MONITOR_EXAMPLES_OF
from submitrain.monitor.cli import build_parser as monitor_parser
from submitrain.slurm.cluster import ClusterInventory, Partition, parse_sinfo
from tests.cluster.cluster import SlurmCluster
from tests.paths import REPOSITORY
from tests.unit.launcher.test_cli import Shell, assert_one_line, shell

__all__ = ["shell"]
ROOT = REPOSITORY
REGENERATE = "generated from the types: run `make docs`"


def test_the_schema_file_that_editors_read_is_current() -> None:
    path = ROOT / "launcher" / "config.schema.json"
    assert json.loads(path.read_text()) == editor_schema(), REGENERATE


def test_the_reference_of_all_keys_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), REGENERATE


def test_the_reference_has_every_key_and_every_spelling() -> None:
    text = reference()
    for path, section in every_section():
        assert f"## `{'.'.join(map(str, path))}`" in text
        for spelling, written in aliases(section).items():
            if spelling != "target" and section_class(keys(section)[written]) is None:
                assert f"`{spelling}`" in text
                assert f"| `{written}` |" in text


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [({}, None), ({"slurm": {"nodes": 0}}, "nodes"), ({"slrum": {}}, "slrum")],
    ids=["valid", "value", "key"],
)
def test_editors_accept_what_we_accept(change: dict[str, object], wrong: str | None) -> None:
    editor = Draft202012Validator(editor_schema())
    for path in CONFIGS:
        tree = read_document(path).tree
        found = [error.message for error in editor.iter_errors({**tree, **change})]
        assert bool(found) == bool(wrong), found
    Draft202012Validator.check_schema(editor_schema())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configurations_tell_editors_where_the_schema_is(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    _, _, schema = first.partition("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == ROOT / "launcher" / "config.schema.json"


def test_every_key_can_be_explained() -> None:
    for section in sections():
        for doc in key_docs((section,)):
            found = explain_key(doc.key)
            assert found == doc
            assert doc.doc
            assert doc.section or (doc.allowed and doc.default), doc
            assert doc.key in key_text(doc)
    assert len(key_docs()) == len(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("asked", "key", "said"),
    [
        ("slurm.time", "slurm.time", ["a duration", "default       1-00:00:00", "minutes"]),
        ("seq_length", "dataset.max_length", ["tokens", "also written  seq_length, seq_len"]),
        (
            "resilience.hang.step_s",
            "resilience.hang.step_s",
            ["seconds", "hang:\n      step_s: 60"],
        ),
        ("lr", "optimizer.lr", ["a number > 0"]),
        ("slurm.hf_token", "slurm.hf_token", ["a ${VAR} placeholder"]),
        ("slurm.nodes", "slurm.nodes", ["a range such as 2-4", "default       1"]),
        ("resilience.hang", "resilience.hang", ["silence_s", "resilience.hang.KEY tells more"]),
    ],
)
def test_a_key_is_explained_with_its_facts(asked: str, key: str, said: list[str]) -> None:
    doc = explain_key(asked)
    assert doc.key == key
    for words in said:
        assert words in key_text(doc)


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("slurm.tme", "did you mean slurm.time?"),
        ("slrm.time", "did you mean slurm.time?"),
        ("optimizer.lrr", "did you mean optimizer.lr?"),
        ("optimizer.betas", "given to the component that optimizer._target_ names"),
        ("resilience.hang.stp_s", "did you mean resilience.hang.step_s?"),
        ("slurm.gpus", "write slurm.gpus_per_node"),
        ("slurm.lr", "lr belongs to optimizer.lr"),
        ("num_workers", "a key of several sections: dataset.num_workers"),
        ("slurm.time.hours", "slurm.time has no keys of its own"),
        ("zebra", "python -m launcher explain lists all sections"),
        ("preempt", "slurm.requeue mention it"),
    ],
)
def test_an_unknown_key_is_one_line_with_a_way_on(asked: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        explain_key(asked)
    [line] = str(caught.value).splitlines()
    assert hint in line


def test_explain_lists_sections_and_is_json_for_scripts(shell: Shell) -> None:
    assert "  slurm " in shell("explain").stdout
    found = json.loads(shell("explain", "slurm", "--json").stdout)
    assert [doc["key"] for doc in found][:2] == ["slurm", "slurm.job_name"]
    done = shell("explain", "slurm.tme")
    assert done.returncode == 2
    assert_one_line(done.stderr, "did you mean slurm.time?")


def test_init_writes_for_this_machine_what_passes_plan_and_overwrites_nothing(shell: Shell) -> None:
    done = shell("init", "-o", "new.yaml", "--cluster", "local")
    assert done.returncode == 0, done.stderr
    assert "python -m launcher plan new.yaml" in done.stdout
    plan = shell("plan", "new.yaml", "--json")
    assert plan.returncode == 0, plan.stderr
    assert plan.stderr == ""
    text = (shell.folder / "new.yaml").read_text()
    schema = text.splitlines()[0].partition("$schema=")[2]
    assert Path(schema).is_file()

    (shell.folder / "new.yaml").write_text("mine: 1\n")
    again = shell("init", "-o", "new.yaml", "--cluster", "local")
    assert again.returncode == 2
    assert_one_line(again.stderr, "exists already")
    assert (shell.folder / "new.yaml").read_text() == "mine: 1\n"
    assert shell("init", "-o", "new.yaml", "--cluster", "local", "--force").returncode == 0
    assert (shell.folder / "new.yaml").read_text() == text
    assert_one_line(shell("init", "-o", "nowhere/x.yaml").stderr, "cannot be written")
    assert_one_line(shell("init", "-o", ".").stderr, "got the folder .")


@pytest.mark.slurm
def test_init_asks_the_cluster_and_the_result_runs_there(
    shell: Shell, slurm_cluster: SlurmCluster
) -> None:
    done = shell("init", "-o", "new.yaml", **slurm_cluster.env)
    assert done.returncode == 0, done.stderr
    text = (shell.folder / "new.yaml").read_text()
    partition = slurm_cluster.run("sinfo", "--noheader", "--format=%R %D %c %G").split()
    assert f"partition: {partition[0]}\n" in text
    gpus = partition[3].partition("(")[0].rpartition(":")[2]
    assert f"gpus_per_node: {gpus} " in text
    assert "account: research  " in text
    config = load_config(shell.folder / "new.yaml").config
    assert config.slurm.ntasks_per_node == int(gpus)
    plan = json.loads(shell("plan", "new.yaml", "--json", **slurm_cluster.env).stdout)
    assert plan["warnings"] == []
    # The ranks are toys (tests/toy_rank.py); partition, account, GPUs, time are Slurm's to judge.
    started = shell(
        "new.yaml", "--wait", "--json", "step_scheduler.max_steps=10", **slurm_cluster.env
    )
    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout)["state"] == "finished"


SINFO = """\
cpu\x1fup\x1f1:00:00\x1f10\x1f64+\x1f256000+\x1f(null)\x1fcpu*
gpu\x1fup\x1finfinite\x1f2\x1f32\x1f500000\x1fgpu:a100:4(S:0-1)\x1fgpu
gpu\x1fup\x1finfinite\x1f6\x1f32\x1f500000\x1fgpu:8,nic:1\x1fgpu
old\x1fdown\x1f2-00:00:00\x1f90\x1f8\x1f16000\x1fgpu:k80:8\x1fold
"""


def test_partitions_are_read_and_the_one_with_gpus_that_is_up_is_taken() -> None:
    found = parse_sinfo(SINFO)
    assert found == [
        Partition("cpu", True, True, 10, 64, 256000, max_s=3600),
        Partition("gpu", True, False, 6, 32, 500000, gpus=8),
        Partition("old", False, False, 90, 8, 16000, gpus=8, gpu_type="k80", max_s=172800),
    ]
    assert ClusterInventory(tuple(found)).best() == found[1]
    assert ClusterInventory((found[0],)).best() == found[0]
    assert ClusterInventory().best() is None


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A command line's commands."""
    [choices] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(choices.choices)


@pytest.mark.parametrize(
    ("parser", "examples"),
    [(launcher_parser(), EXAMPLES_OF), (monitor_parser(), MONITOR_EXAMPLES_OF)],
    ids=["launcher", "monitor"],
)
def test_the_help_of_every_command_has_examples_that_parse(
    parser: argparse.ArgumentParser, examples: dict[str, tuple[tuple[str, str], ...]]
) -> None:
    assert set(examples) == set(commands(parser))
    for name, command in commands(parser).items():
        text = command.format_help()
        for words, _ in examples[name]:
            assert words in text
            arguments = shlex.split(words.partition(">")[0])
            arguments = arguments if name != "run" else ["run", *arguments]
            parsed, rest = parser.parse_known_args(arguments)
            assert not [word for word in rest if "=" not in word], words
            assert callable(parsed.handler)


BASH_DRIVER = """\
eval "$({python} -m launcher completion bash)"
COMP_LINE="$*"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_submitrain
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
LINES = {
    "commands": ("python -m launcher sta", ["status"]),
    "monitor": ("python -m monitor dia", ["diagnose"]),
    "files": ("python -m launcher plan c", ["cfg.yaml", "configs/"]),
    "files in folders": ("python -m launcher configs/", ["configs/deep.yaml"]),
    "overrides": ("python -m launcher cfg.yaml slurm.ti", ["slurm.time="]),
    "options": ("python -m launcher cfg.yaml --dr", ["--dry-run"]),
    "values": ("python -m launcher cfg.yaml --cluster lo", ["local"]),
    "runs": ("python -m launcher logs ti", ["tiny-20260101T000000-12345678"]),
    "latest": ("python -m monitor diagnose l", ["latest"]),
    "of another folder": ("python -m launcher status --runs-dir other o", ["other-run"]),
    "resources": ("python -m launcher resume tiny slurm.no", ["slurm.nodelist=", "slurm.nodes="]),
    "keys": ("python -m launcher explain resilience.max_s", [
        "resilience.max_skipped_steps", "resilience.max_strikes",
    ]),
    "values of keys": ("python -m launcher cfg.yaml slurm.nodes = c", []),
    "nothing of ours": ("python -m pip inst", []),
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with configurations and runs."""
    (tmp_path / "configs").mkdir()
    for name in ("cfg.yaml", "configs/deep.yaml", "notes.txt"):
        (tmp_path / name).touch()
    for name in ("runs/tiny-20260101T000000-12345678", "other/other-run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "record.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("line", "expected"), LINES.values(), ids=LINES)
def test_bash_completes(project: Path, line: str, expected: list[str]) -> None:
    words = [sys.executable, *line.split()[1:]]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", BASH_DRIVER.format(python=sys.executable), "bash", *words],
        cwd=project, env=environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split() == expected


SHELLS = {
    "zsh": "zsh -fc 'autoload -Uz compinit; compinit -u; source \"$0\"; print $_comps[python]' {}",
    "fish": "fish -N -c 'source {}; complete -C \"python3 -m launcher sta\"'",
}


@pytest.mark.parametrize("name", SHELLS)
def test_other_shells_load_their_script(tmp_path: Path, name: str) -> None:
    from submitrain.launcher.cli.completion import SCRIPTS

    if shutil.which(name) is None:
        pytest.skip(f"{name} is not on this machine")
    script = tmp_path / f"script.{name}"
    script.write_text(SCRIPTS[name])
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:/bin:/usr/bin",
    }
    done = subprocess.run(
        ["bash", "-c", SHELLS[name].format(script)],
        env=environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split() == [{"zsh": "_submitrain", "fish": "status"}[name]]
