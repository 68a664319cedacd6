"""The ranks' environment: which variables do harm, where each comes from, which modules load."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from submitrain.config import RunConfig
from submitrain.errors import UserError
from submitrain.launcher.checks.environment import (
    CONDITIONS,
    SHELL,
    Origin,
    Setting,
    in_short,
    lint,
    listing,
    ranks_environment,
    rules,
)
from submitrain.launcher.checks.finding import Level
from submitrain.launcher.plan.prepare import prepare
from submitrain.launcher.plan.sbatch import module_lines

GPUS = Setting(on_gpu=True, nodes=4, ranks_per_node=8, cpus_per_rank=8, interface="ib0")
HARMFUL = {
    "NCCL_ALGO": "Ring,Tree",
    "NCCL_PROTO": "LL128",
    "NCCL_SOCKET_IFNAME": "ib0",
    "GLOO_SOCKET_IFNAME": "eth0",
    "NCCL_NET_GDR_LEVEL": "3",
    "NCCL_P2P_LEVEL": "NVL",
    "NCCL_MAX_NCHANNELS": "16",
    "NCCL_MIN_NCHANNELS": "4",
    "NCCL_NTHREADS": "512",
    "NCCL_BUFFSIZE": "2097152",
    "NCCL_IB_DISABLE": "1",
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    "NCCL_DEBUG": "TRACE",
    "NCCL_DEBUG_FILE": "/tmp/nccl.log",
    "NCCL_IB_CUDA_SUPPORT": "1",
    "NCCL_RINGS": "0 1",
    "NCCL_MAX_NRINGS": "4",
    "NCCL_MIN_NRINGS": "4",
    "NCCL_LL_THRESHOLD": "0",
    "NCCL_TREE_THRESHOLD": "0",
    "NCCL_ASYNC_ERROR_HANDLING": "1",
    "NCCL_BLOCKING_WAIT": "1",
    "TORCH_NCCL_BLOCKING_WAIT": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "TORCH_SHOW_CPP_STACKTRACES": "1",
    "CUDA_LAUNCH_BLOCKING": "1",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128, expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:128",
    "OMP_NUM_THREADS": "96",
    "MASTER_PORT": "29500",
    "MASTER_ADDR": "node1",
}
HARMLESS = {
    "NCCL_ALGO": "^CollNet",
    "NCCL_PROTO": "^LL128",
    "NCCL_SOCKET_IFNAME": "=ib0",
    "GLOO_SOCKET_IFNAME": "ib0",
    "NCCL_IB_DISABLE": "0",
    "NCCL_P2P_DISABLE": "0",
    "NCCL_SHM_DISABLE": "0",
    "NCCL_DEBUG": "INFO",
    "NCCL_DEBUG_FILE": "/tmp/nccl.%h.%p",
    "TORCH_NCCL_BLOCKING_WAIT": "0",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_DISTRIBUTED_DEBUG": "INFO",
    "TORCH_SHOW_CPP_STACKTRACES": "0",
    "CUDA_LAUNCH_BLOCKING": "0",
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "max_split_size_mb:128",
    "OMP_NUM_THREADS": "8",
    "NCCL_IB_HCA": "mlx5",
    "PATH": "/usr/bin",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_variable_is_named_with_reason_and_source(name: str) -> None:
    (found, *_) = lint({name: HARMFUL[name]}, {}, GPUS)
    assert (found.id, found.where) == (f"slurm.env.{name}", "slurm.env")
    assert found.evidence.startswith(f"{HARMFUL[name]}: ") and found.evidence.endswith("]")
    assert all(rule.why and rule.source for rule in rules())


def test_every_rule_has_a_value_that_it_complains_of() -> None:
    ours = {name for rule in rules() if "configured" in rule.conditions for name in rule.variables}
    assert {name for rule in rules() for name in rule.variables} - ours == set(HARMFUL)
    assert {"RANK", "PYTHONPATH"} <= ours


def test_every_condition_of_a_rule_is_known_and_used() -> None:
    named = {one for rule in rules() for one in rule.conditions if not one.startswith("=")}
    assert named == {*CONDITIONS, "configured"}


def test_harmless_values_pass() -> None:
    assert lint(HARMLESS, {}, GPUS) == []
    assert lint({}, HARMLESS, GPUS) == []


def test_on_cpus_nobody_is_told_about_gpus() -> None:
    cpus = Setting(on_gpu=False, nodes=1, ranks_per_node=2, cpus_per_rank=None)
    told = {one.id for one in lint({}, HARMFUL, cpus)}
    assert not {"NCCL_ALGO", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING"} & told
    assert {"MASTER_PORT", "NCCL_DEBUG"} <= told


@pytest.mark.parametrize("name", ["NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"])
def test_loopback_is_an_error_between_nodes_only(name: str) -> None:
    plain = Setting(nodes=2)
    assert [one.level for one in lint({}, {name: "lo"}, plain)] == [Level.FAIL]
    assert lint({}, {name: "lo"}, Setting(nodes=1)) == []


def test_variables_that_number_ranks_are_refused_in_the_configuration() -> None:
    names = [name for rule in rules() if "configured" in rule.conditions for name in rule.variables]
    configured = dict.fromkeys([*names, "SLURM_NTASKS"], "3")
    found = lint(configured, configured, GPUS)
    assert {one.id for one in found} == {f"slurm.env.{name}" for name in configured}
    assert {one.level for one in found} == {Level.FAIL}
    assert lint({}, configured, GPUS) == []


def test_the_configuration_hides_what_the_shell_has() -> None:
    assert lint({"NCCL_DEBUG": "WARN"}, {"NCCL_DEBUG": "TRACE"}, GPUS) == []
    (found,) = lint({}, {"NCCL_DEBUG": "TRACE"}, GPUS)
    assert (found.id, found.where) == ("NCCL_DEBUG", SHELL)
    assert found.evidence.startswith(f"TRACE ({SHELL}): ")


def test_errors_come_first_and_placeholders_are_not_judged() -> None:
    found = lint({"NCCL_DEBUG": "TRACE", "RANK": "0", "NCCL_ALGO": "${ALGO}"}, {}, GPUS)
    assert [one.id for one in found] == ["slurm.env.RANK", "slurm.env.NCCL_DEBUG"]


MODEL: dict[str, Any] = {
    "model": {"config": {"model_type": "llama"}, "train_tokenizer_vocab_size": 300},
    "dataset": {"_target_": "python_stdlib"},
    "step_scheduler": {"max_steps": 1},
}


def test_a_launch_is_refused_for_an_error_and_warned_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    slurm = {"nodes": 2, "env": {"NCCL_DEBUG": "TRACE"}}
    found = prepare({**MODEL, "slurm": slurm}, cluster="slurm", plan_only=True)
    assert any(line.startswith("slurm.env.NCCL_DEBUG: TRACE") for line in found.plan.warnings)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME: lo .*leads to no other node"):
        prepare({**MODEL, "slurm": slurm}, cluster="slurm", plan_only=True)


CONFIG = RunConfig.model_validate(
    {
        "distributed": {"interface": "ib0"},
        "slurm": {
            "nodes": 2,
            "cpus_per_task": 4,
            "env": {"NCCL_DEBUG": "INFO"},
            "hf_token": "${HF_TOKEN}",
            "modules": ["cuda/12.4"],
            "setup": ["ulimit -n 65536"],
        },
    }
)
SHELL_HAS = {
    "PATH": "/bin",
    "NCCL_DEBUG": "WARN",
    "EDITOR": "ed",
    "MY_API_KEY": "hunter2hunter2",
    "PROXY": "http://hunter2hunter2@proxy",
    "SLURM_NTASKS": "9",
    "PYTHONPATH": "/mine",
}


def test_every_variable_of_the_ranks_tells_who_sets_it() -> None:
    found = {
        one.name: one for one in ranks_environment(CONFIG, SHELL_HAS, cluster="slurm", gpus=True)
    }
    assert (found["NCCL_DEBUG"].value, found["NCCL_DEBUG"].where) == (
        "INFO",
        "slurm.env.NCCL_DEBUG",
    )
    assert (found["HF_TOKEN"].value, found["HF_TOKEN"].origin) == (
        "${HF_TOKEN}",
        Origin.CONFIGURATION,
    )
    assert (found["PATH"].origin, found["PATH"].matters) == (Origin.SHELL, True)
    assert not found["EDITOR"].matters
    assert found["OMP_NUM_THREADS"].value == "4"
    assert found["NCCL_SOCKET_IFNAME"].value == "=ib0"
    assert (found["PYTHONPATH"].origin, found["PYTHONPATH"].value) == (
        Origin.DEFAULT,
        "<run>/code:...:/mine",
    )
    assert found["CUDA_VISIBLE_DEVICES"].origin is Origin.JOB
    assert "SLURM_NTASKS" not in found, "what a surrounding job set does not reach the ranks"


def test_secrets_of_the_shell_are_not_shown() -> None:
    found = ranks_environment(CONFIG, SHELL_HAS, cluster="slurm", gpus=False)
    assert "hunter2" not in listing(found, CONFIG) + str([one.as_json() for one in found])


def test_the_listing_names_origins_and_what_the_job_may_change() -> None:
    found = ranks_environment(CONFIG, SHELL_HAS, cluster="slurm", gpus=True)
    text = listing(found, CONFIG)
    assert "    NCCL_DEBUG                   INFO  [slurm.env.NCCL_DEBUG]" in text
    assert "module load cuda/12.4" in text and "ulimit -n 65536" in text
    assert in_short(found).startswith("2 variables from the configuration, 4 from this shell (1 ")


def run_lines(lines: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Run lines of a batch script as Slurm does: in a bash without a ``module`` function."""
    script = "\n".join([*lines, 'echo "has $DEMO"'])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", script],
        env={"PATH": "/usr/bin:/bin", "MODULESHOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def modules_home(tmp_path: Path) -> Path:
    """A module system of three lines that, as old ones do, exits with 0 whatever happens."""
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text(
        'module() { for m in "${@:2}"; do case $m in demo*) export DEMO=yes '
        'LOADEDMODULES="$LOADEDMODULES:demo/1.0";; *) echo "no $m" >&2;; esac; done; }\n'
    )
    return tmp_path


def test_modules_are_loaded_although_the_script_has_no_module_function(modules_home: Path) -> None:
    for name in ("demo", "demo/1.0"):
        done = run_lines(module_lines([name]), modules_home)
        assert (done.returncode, done.stdout) == (0, "has yes\n"), done.stderr


def test_a_missing_module_ends_the_job_and_is_named(modules_home: Path) -> None:
    done = run_lines(module_lines(["demo", "nccl/2.99"]), modules_home)
    assert (done.returncode, done.stdout) == (1, "")
    assert "slurm.modules: nccl/2.99 is not loaded on" in done.stderr


def test_without_modules_nothing_is_written() -> None:
    assert module_lines([]) == []
