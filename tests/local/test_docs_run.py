"""Every block of commands or Python in the README and the documents is executed, as printed.

A page is played in a folder of its own, as a user would type it, in two scenes: ``local``, this
machine, and ``site``, a real Slurm with the accounts, partitions, nodes and GPUs that the pages
speak of. Launcher, supervisor, submission and monitor are real; ranks count steps instead of
training (``tests/toy_rank.py``), unless a page has its own torch to run. What takes minutes, never
ends or installs packages names the test or the step of CI that runs it instead.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from submitrain.config.document import dump_yaml
from submitrain.launcher import Run
from submitrain.run_folder import list_runs
from tests.cluster import ClusterOptions, SlurmCluster
from tests.cluster.fixtures import ClusterFactory, require_slurm
from tests.documents import ROOT, Block, Runs, block_of, blocks
from tests.local.test_launch import end_processes
from tests.paths import TESTS
from tests.tiny import tiny_config

EXECUTABLE = {"console", "bash", "python"}
SCENES = {"local", "site"}
COMMAND_S = 240
QUICK_WATCH = {"monitor": {"interval_s": 1}, "alerts": {"group_s": 0}}
"""A watcher that does not look every 30 s only, nor waits for more to tell."""
SITE = ClusterOptions(
    cpus=64,
    memory_mb=1_000_000,
    accounts=("my_account", "research"),
    extra_slurm_conf=("PartitionName=gpu Nodes=node[1-4] MaxTime=7-00:00:00 State=UP",),
)
PREPARED = {
    "notebooks.md": "python -m launcher init -o first.yaml --cluster local",
    "monitoring.md": "python -m launcher cfg.yaml",
    "monitoring-report.md": "python -m launcher cfg.yaml",
    "troubleshooting.md": "! TOY_DATA_ERROR=1 python -m launcher cfg.yaml",
}
"""What the reader of a page has done before."""
LEFT = {
    ("local", "README.md"): "runs/quickstart-*/summary.json",
    ("site", "README.md"): "runs/llama-8b-alpaca-*/reports/report.html",
    ("local", "first-run.md"): "runs/first-*/reports/report.html",
    ("local", "notebooks.md"): "loss.svg",
    ("local", "monitoring-report.md"): "report.html",
    ("site", "assess.md"): "assess.html",
    ("site", "on-your-cluster.md"): "runs/cluster-*/reports/report.html",
    ("site", "preflight.md"): "runs/assess/*/attempts/001/preflight.json",
    ("site", "slurm-options.md"): "runs/pretrain-*/successors/finetune-*",
    ("site", "sweeps.md"): "runs/*-sweep-*/report.html",
}
"""What is there once a page has been played."""


def executable() -> list[Block]:
    """The blocks that this file is about: not those of CONTRIBUTING."""
    return [
        block
        for block in blocks()
        if block.language in EXECUTABLE and block.document.name != "CONTRIBUTING.md"
    ]


def pages(scene: str) -> list[str]:
    """Names of the documents that are played in a scene."""
    found = [b.document.name for b in executable() if b.runs and b.runs.scene == scene]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("block", executable(), ids=lambda block: block.where)
def test_every_block_says_where_it_is_executed(block: Block) -> None:
    assert block.runs is not None, "no comment <!-- runs: ... --> above it"
    assert block.runs.scene in {None, *SCENES}
    assert block.runs.scene is None or block.to_run(), "nothing is left to run"
    for words, target in block.runs.elsewhere:
        text = text_of(target)
        if words:
            assert any(words in command for command in block.commands()), f"no command has {words}"
            unknown = [word for word in words.split() if word.lstrip("-") not in text]
            assert not unknown, f"{target} does not have {unknown}"


def text_of(target: str) -> str:
    """Text of the test, or of the step of CI with what it makes, that runs something instead."""
    file, _, test = target.partition("::")
    text = (ROOT / file).read_text()
    if file == ".ci/run":
        return text + (ROOT / "Makefile").read_text()
    names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    tests = [name for name in names if name.startswith("test_")]
    assert test in tests if test else tests, f"there is no test {target}"
    return text


def test_commands_stand_in_blocks_that_are_executed() -> None:
    documents = [block for block in blocks() if block.document.name != "CONTRIBUTING.md"]
    assert not [b.where for b in documents if b.language not in EXECUTABLE and b.commands()]


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("site", Runs("site")),
        ("local, exit code 2", Runs("local", exit_code=2)),
        ("elsewhere .ci/run", Runs(None, (("", ".ci/run"),))),
        ("site, but a b in x.py, c in y.py", Runs("site", (("a b", "x.py"), ("c", "y.py")))),
    ],
)
def test_the_comment_above_a_block_is_understood(text: str, runs: Runs) -> None:
    assert Runs.parse(text) == runs


def test_a_comment_that_is_not_understood_is_refused() -> None:
    with pytest.raises(ValueError, match="drill"):
        Runs.parse("site, drill")


def play(page: str, scene: str, folder: Path, between: Callable[[], object], **env: str) -> None:
    """Type the page's commands of a scene into shells, and compare what it shows as printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.environ['PATH'])}"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    toys = {"SUBMITRAIN_RANK_MODULE": "toy_rank", "TOY_STEP_S": "0.004"}
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environ = {**inherited, **toys, **offline, **env, "PATH": path}
    if page in PREPARED:
        typed(PREPARED[page], folder, environ)
    for block in executable():
        if block.document.name == page and block.runs and block.runs.scene == scene:
            code = block.runs.exit_code
            printed = "".join(typed(line, folder, environ, code) for line in block.to_run())
            missing = [line for line in block.output() if line.rstrip() not in printed]
            assert not missing, f"{block.where} shows what was not printed:\n{printed}"
            between()
    if (scene, page) in LEFT:
        assert list(folder.glob(LEFT[scene, page])), f"no {LEFT[scene, page]} after {page}"


def typed(line: str, folder: Path, environ: dict[str, str], code: int = 0) -> str:
    """Run what a user types; returns what it printed."""
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environ, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's checkout: configurations, a Makefile whose installation is there, toy ranks."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tests/toy_rank.py"):
        shutil.copy2(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    big = tmp_path / "configs" / "slurm_4x8.yaml"
    big.write_text(f"{big.read_text()}\n{dump_yaml(QUICK_WATCH)}")
    (tmp_path / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def write_configs(folder: Path, **top: Any) -> None:
    """The files that pages call cfg.yaml, pretrain.yaml and finetune.yaml."""
    asked = {"ntasks_per_node": 1, "cpus_per_task": 1, "mem": "1G", "time": "10m"}
    config = {**tiny_config(folder, slurm=asked), **QUICK_WATCH, "runs_dir": "runs", **top}
    config["step_scheduler"] = {"global_batch_size": 8, "max_steps": 24}
    del config["name"]
    for name in ("cfg", "pretrain", "finetune"):
        if name == "finetune":
            del config["model"]["config"], config["model"]["train_tokenizer_vocab_size"]
        (folder / f"{name}.yaml").write_text(dump_yaml(config))


@pytest.mark.ranks
@pytest.mark.parametrize("page", pages("local"))
def test_the_blocks_of_a_page_run_on_this_machine(page: str, place: Path) -> None:
    write_configs(place, cluster="local")
    if page == "automodel.md":
        shutil.copy(TESTS / "data" / "automodel_page.yaml", place / "cfg.yaml")
    try:
        play(page, "local", place, lambda: None)
    finally:
        for folder in list_runs(place / "runs"):
            end_processes(Run(folder))


@pytest.fixture(scope="module")
def site() -> Iterator[SlurmCluster]:
    """A cluster as the pages have it in mind."""
    require_slurm(SITE)
    with SlurmCluster.start(SITE) as cluster:
        yield cluster


@pytest.fixture
def own_clusters() -> Iterator[str]:
    """A folder for clusters that a page starts, all of which are stopped in the end."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder
        environ = {**os.environ, "XDG_RUNTIME_DIR": folder}
        down = [sys.executable, "-m", "tests.cluster", "down", "--all"]
        subprocess.run(down, cwd=ROOT, env=environ, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slurm
@pytest.mark.parametrize("page", pages("site"))
def test_the_blocks_of_a_page_run_on_a_cluster(
    page: str, place: Path, site: SlurmCluster, own_clusters: str
) -> None:
    write_configs(place)
    own = {"TOY_STEP_S": "0.001", "XDG_RUNTIME_DIR": own_clusters}
    if page == "sweeps.md":
        # What its first block asks for waits, as it does elsewhere; the second one's is waited for.
        site.sbatch("sleep 3600", "--nodes=4", "--exclusive", "--time=2:00:00")
    play(page, "site", place, site.cancel_all, **own, **site.env)


@pytest.mark.slurm
def test_the_tests_that_a_page_shows_pass(site: SlurmCluster, make_cluster: ClusterFactory) -> None:
    shown: dict[str, Any] = {}
    exec(block_of("test-cluster.md", "python").text, shown)
    shown["test_something"](site)
    shown["test_something_else"](make_cluster)


def test_the_lines_for_trainer_are_those_of_the_example_that_is_run() -> None:
    example = ast.parse((ROOT / "examples" / "hf_trainer.py").read_text())
    said = {ast.unparse(node) for node in ast.walk(example) if isinstance(node, ast.stmt)}
    arguments = {ast.unparse(node) for node in ast.walk(example) if isinstance(node, ast.keyword)}
    for statement in ast.parse(block_of("own-training-code.md", "python", 1).text).body:
        if "..." in ast.unparse(statement):
            assert isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
            assert {ast.unparse(one) for one in statement.value.keywords} <= arguments
        else:
            assert ast.unparse(statement) in said
