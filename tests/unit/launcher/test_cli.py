"""The command line: bad input is one clear line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from submitrain.launcher.cli.main import COMMANDS, build_parser, main
from submitrain.launcher.run import Run
from submitrain.run_folder import list_runs
from tests.local.test_launch import end_processes
from tests.paths import REPOSITORY, TOY_RANK
from tests.tiny import tiny_config

WAIT_S = 120.0


@dataclass(frozen=True)
class Shell:
    """Runs our command line in a user's project."""

    folder: Path

    def __call__(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", **environ},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=WAIT_S,
            check=False,
        )


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A project with ``cfg.yaml``, a toy run of two ranks on this machine."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(TOY_RANK, folder)
    config = tiny_config(folder, cluster="local", step_scheduler={"max_steps": 10}, runs_dir="runs")
    (folder / "cfg.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "toy_rank")
    yield Shell(folder)
    for run in list_runs(folder / "runs"):
        end_processes(Run(run))


@dataclass
class InProcess:
    """The same commands without a process of their own, for those that start nothing."""

    folder: Path
    output: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = main(list(arguments))
        out, err = self.output.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)


@pytest.fixture
def inside(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> InProcess:
    """The project of ``shell`` as the working directory of this process."""
    monkeypatch.chdir(shell.folder)
    monkeypatch.setenv("COLUMNS", "200")
    return InProcess(shell.folder, capsys)


BAD_OVERRIDES = {
    "unknown key": ("modle.x=1", "modle"),
    "unknown nested key": ("slurm.nodse=2", "nodes"),
    "wrong type": ("slurm.nodes=many", "slurm.nodes"),
    "zero nodes": ("slurm.nodes=0", "slurm.nodes"),
    "negative nodes": ("slurm.nodes=-1", "slurm.nodes"),
    "batch contradiction": ("step_scheduler.global_batch_size=7", "global_batch_size"),
    "missing variable": ("dataset.cache_dir=${NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
    "missing secret": ("slurm.hf_token=${NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
    "secret written out": ("slurm.hf_token=hf_abcdefghijklmnopqrstuv", "slurm.hf_token"),
    "missing data set": ("dataset.dataset_name=./nowhere.jsonl", "no such file"),
    "empty data set": ("dataset.dataset_name=empty.jsonl", "empty.jsonl"),
    "data set that is no JSONL": ("dataset.dataset_name=cfg.jsonl", "cfg.jsonl:1"),
    "missing local model": (
        "model={pretrained_model_name_or_path: ./no-model}",
        "pretrained_model_name_or_path",
    ),
    "model folder without a config": (
        "model={pretrained_model_name_or_path: ./empty-model}",
        "config.json",
    ),
    "runs folder that is a file": ("runs_dir=cfg.yaml", "runs_dir"),
    "runs folder that cannot be made": ("runs_dir=/proc/nowhere/runs", "runs_dir"),
    "override without a value": ("slurm.nodes", "slurm.nodes"),
    "unknown cluster": ("cluster=cloud", "cluster"),
}


@pytest.mark.parametrize(("override", "named"), BAD_OVERRIDES.values(), ids=BAD_OVERRIDES)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    inside: InProcess, override: str, named: str
) -> None:
    (inside.folder / "empty.jsonl").touch()
    (inside.folder / "cfg.jsonl").write_text("model: {}\n")
    (inside.folder / "empty-model").mkdir()
    before = sorted(path.name for path in inside.folder.iterdir())
    done = inside("cfg.yaml", override)
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr, named)
    assert done.stdout == ""
    assert sorted(path.name for path in inside.folder.iterdir()) == before


def assert_one_line(text: str, named: str) -> None:
    """Exactly one line, ours, that names what is wrong."""
    [line] = text.splitlines()
    assert line.startswith("error: ")
    assert named in line


BAD_FILES = {
    "no YAML": ("model: [unclosed\n", "not YAML"),
    "empty file": ("", "empty"),
    "a list": ("- model\n", "list"),
    "duplicate key": ("seed: 1\nseed: 2\n", "twice"),
}


@pytest.mark.parametrize(("text", "named"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_configuration_is_one_clear_line(
    inside: InProcess, text: str, named: str
) -> None:
    (inside.folder / "bad.yaml").write_text(text)
    done = inside("bad.yaml")
    assert done.returncode == 2
    assert_one_line(done.stderr, named)


def test_a_missing_file_is_one_line_with_a_guess(inside: InProcess) -> None:
    done = inside("cgf.yaml")
    assert done.returncode == 2
    assert_one_line(done.stderr, "did you mean cfg.yaml?")


def test_a_mistyped_command_or_folder_is_one_line_with_a_guess(inside: InProcess) -> None:
    (inside.folder / "configs").mkdir()
    (inside.folder / "cfg.yaml").rename(inside.folder / "configs" / "cfg.yaml")
    for words, said in (
        (["stauts", "latest"], "did you mean status?"),
        (["config/cfg.yaml"], "no folder config; did you mean configs/cfg.yaml?"),
    ):
        done = inside(*words)
        assert done.returncode == 2
        assert_one_line(done.stderr, said)


def test_two_problems_are_two_lines(inside: InProcess) -> None:
    done = inside("cfg.yaml", "slurm.nodes=0", "optimizer.lr=-1")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2


def test_slurm_where_there_is_none_is_one_clear_line(shell: Shell) -> None:
    done = shell("cfg.yaml", "--cluster", "slurm", SLURM_CONF="/nowhere/slurm.conf")
    assert done.returncode == 2
    assert_one_line(done.stderr, "slurm was asked for")
    assert not (shell.folder / "runs").exists()


def test_a_configured_slurm_that_is_silent_is_no_reason_to_train_here(shell: Shell) -> None:
    (shell.folder / "slurm.conf").write_text(
        "ClusterName=gone\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\n"
        "AuthType=auth/munge\nMessageTimeout=2\nNodeName=n1\nPartitionName=p Nodes=n1\n"
    )
    conf = str(shell.folder / "slurm.conf")
    done = shell("cfg.yaml", "--cluster", "auto", SLURM_CONF=conf)
    assert done.returncode == 2
    assert_one_line(done.stderr, "--cluster local")


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "resume"])
def test_a_run_that_does_not_exist_is_one_clear_line(inside: InProcess, command: str) -> None:
    done = inside(command, "nothing")
    assert done.returncode == 2
    assert_one_line(done.stderr, "no run nothing")


def test_a_local_run_is_watched_to_its_end_with_a_summary(shell: Shell) -> None:
    done = shell("cfg.yaml")
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "4.0000 -> 0.4000" in done.stdout
    assert done.stderr == ""


def test_overrides_may_stand_before_and_after_options(shell: Shell) -> None:
    done = shell("cfg.yaml", "seed=1", "--cluster", "local", "step_scheduler.max_steps=3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total_steps"] == 3


def test_detached_runs_are_found_by_list_and_status(shell: Shell) -> None:
    started = json.loads(shell("cfg.yaml", "--detach", "--json").stdout)
    Run.open(started["folder"]).wait(WAIT_S)
    [listed] = json.loads(shell("list", "--json").stdout)
    assert (listed["run_id"], listed["state"]) == (started["run_id"], "finished")
    assert "finished" in shell("list").stdout
    assert "10 of 10" in shell("status", "latest").stdout


def test_logs_show_the_rank_that_is_asked_for(shell: Shell) -> None:
    shell("cfg.yaml", "--json")
    assert "toy_rank.py" in shell("logs", "latest", "--rank", "1").stdout
    done = shell("logs", "latest", "--rank", "7")
    assert done.returncode == 2
    assert_one_line(done.stderr, "rank00000.err")


def test_following_the_logs_of_an_ended_run_ends(shell: Shell) -> None:
    shell("cfg.yaml", "--json")
    assert shell("logs", "latest", "-f").stdout == shell("logs", "latest").stdout


def test_a_data_error_of_the_ranks_is_the_users_and_is_said_in_one_line(shell: Shell) -> None:
    done = shell("cfg.yaml", TOY_DATA_ERROR="1")
    assert done.returncode == 2
    assert_one_line(done.stderr, "dataset: expected at least one sample, got none (nowhere.jsonl)")


def test_cancel_and_resume_from_other_processes(shell: Shell) -> None:
    started = json.loads(shell("cfg.yaml", "--detach", "--json", TOY_STEP_S="0.5").stdout)
    assert shell("cancel", "latest").returncode == 0
    Run.open(started["folder"]).wait(WAIT_S)
    done = shell("resume", "latest", "--json")
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "finished")
    again = shell("resume", "latest")
    assert again.returncode == 2
    assert_one_line(again.stderr, "has finished")


def test_resume_changes_resources_only(shell: Shell) -> None:
    shell("cfg.yaml", "--json")
    done = shell("resume", "latest", "optimizer.lr=1")
    assert done.returncode == 2
    assert_one_line(done.stderr, "expected slurm.KEY=VALUE")


def test_a_dry_run_shows_the_plan_and_starts_nothing(shell: Shell) -> None:
    done = shell("cfg.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 x 2 x 2 = 8" in done.stdout
    assert json.loads(shell("plan", "cfg.yaml", "--json").stdout)["world_size"] == 2
    assert not (shell.folder / "runs").exists()


def test_the_schema_is_json_schema_of_a_configuration(shell: Shell) -> None:
    schema = json.loads(shell("schema").stdout)
    assert {"model", "dataset", "slurm"} <= set(schema["properties"])


def test_a_users_train_py_does_not_break_the_command_line(shell: Shell) -> None:
    (shell.folder / "train.py").write_text("raise SystemExit('shadowed')\n")
    done = shell("cfg.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "finished"


def test_help_answers_without_torch_and_names_every_command(shell: Shell) -> None:
    done = shell("--help")
    assert done.returncode == 0
    assert all(f"    {name} " in done.stdout for name in COMMANDS)
    code = (
        "import sys, contextlib, io\nfrom submitrain.launcher.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'submitit', 'rich', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_the_commands_and_their_options_are_frozen() -> None:
    """A flag is a promise: this list changes only on purpose."""
    import argparse

    parser = build_parser()
    [choices] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    found = {
        name: sorted(
            option
            for action in command._actions
            for option in action.option_strings or [action.dest.upper()]
            if option not in ("-h", "--help")
        )
        for name, command in choices.choices.items()
    }
    assert found == {
        "run": [
            *("--after", "--cluster", "--detach", "--dry-run", "--force", "--json", "--max-wait"),
            *("--wait",),
            *("CONFIG", "OVERRIDES"),
        ],
        "assess": ["--config", "--html", "--json", "--nodes", "--quick"],
        "plan": ["--after", "--cluster", "--env", "--json", "--keys", "CONFIG", "OVERRIDES"],
        "list": ["--json", "--runs-dir"],
        "status": ["--json", "--runs-dir", "RUN"],
        "logs": ["--attempt", "--follow", "--rank", "--runs-dir", "--tail", "-f", "RUN"],
        "cancel": ["--runs-dir", "RUN"],
        "resume": ["--detach", "--force", "--json", "--runs-dir", "--wait", "OVERRIDES", "RUN"],
        "drill": [
            *("--cluster", "--faults", "--json", "--list", "--shrink", "--steps"),
            *("CONFIG", "OVERRIDES"),
        ],
        "sweep": [
            *("--at-once", "--cluster", "--detach", "--grid", "--html", "--json", "--mode"),
            *("--nodes", "--price", "--repeats", "--runs-dir", "--steps", "--tokens", "--wait"),
            *("--warmup", "CONFIG", "OVERRIDES"),
        ],
        "init": ["--cluster", "--force", "--output", "-o"],
        "explain": ["--json", "KEY"],
        "schema": ["--markdown"],
        "completion": ["SHELL", "WORDS"],
    }
