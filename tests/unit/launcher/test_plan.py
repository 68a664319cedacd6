"""The plan: arithmetic, sbatch parameters and text, warnings, what is printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from submitrain.launcher.plan.config import load_config
from submitrain.launcher.plan.plan import make_plan
from submitrain.launcher.plan.sbatch import job_python, script_text
from tests.config_parts import MACHINE, SMALL, load, plan
from tests.paths import TESTS

HERE = TESTS
FOLDER = Path("/shared/runs/demo-20250101T000000-0123abcd/submitit")
PYTHON = "/opt/venv/bin/python"
SECRETS = {"HF_TOKEN": "hf-value", "WANDB_API_KEY": "wandb-value"}


def family_plan() -> Any:
    loaded = load_config(HERE / "data" / "automodel_4x8.yaml", environ=SECRETS)
    return make_plan(loaded, cluster="slurm", gpus_available=True)


def full_plan() -> Any:
    """Every option of the slurm section at once, with text that a shell would misread."""
    slurm = {
        "job_name": "a job's name",
        "nodes": 2,
        "ntasks_per_node": 4,
        "time": "1-02:30:01",
        "account": "team",
        "partition": "gpu,preempt",
        "qos": "high",
        "gpus_per_node": 4,
        "gpu_type": "h100",
        "cpus_per_task": 12,
        "mem": "400G",
        "constraint": "[rack1|rack2]",
        "nodelist": "node[1-2]",
        "exclude": "node3",
        "exclusive": True,
        "reservation": "maintenance",
        "dependency": "afterok:12:34",
        "begin": "now+1hour",
        "mail_type": "END,FAIL",
        "mail_user": "me@example.org",
        "comment": "50% of $HOME; `date`",
        "requeue": False,
        "signal_lead_s": 300,
        "additional_parameters": {"switches": 1, "--overcommit": True, "time_min": "2:00:00"},
        "srun_args": ["--mpi=none"],
        "setup": ["module load cuda", "export A=${B}"],
        "env": {"NCCL_DEBUG": "WARN", "MY_TOKEN": "${HF_TOKEN}"},
        "hf_token": "${HF_TOKEN}",
        "hf_home": "/cache",
    }
    loaded = load({"slurm": slurm}, environ=SECRETS)
    return make_plan(loaded, cluster="slurm", gpus_available=True)


GOLDEN = {
    "small": lambda: plan(gpus=False),
    "automodel_4x8": family_plan,
    "every_option": full_plan,
    "gres": lambda: plan(
        {"slurm": {"ntasks_per_node": 2, "gres": "gpu:a100:2", "mem_per_cpu": "4G"}}
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_batch_script_is_the_golden_one(name: str) -> None:
    text = script_text(GOLDEN[name]().sbatch, FOLDER, python=PYTHON)
    assert text == (HERE / "golden" / f"sbatch_{name}.sh").read_text()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_batch_script_is_valid_shell_and_holds_no_secret(name: str) -> None:
    text = script_text(GOLDEN[name]().sbatch, FOLDER, python=PYTHON)
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any(value in text for value in SECRETS.values())


@pytest.mark.skipif(shutil.which("srun") is None, reason="submitit's executor wants srun on PATH")
def test_the_shown_script_is_the_one_that_submitit_submits(tmp_path: Path) -> None:
    from submitit import SlurmExecutor

    wanted = full_plan()
    executor = SlurmExecutor(folder=tmp_path, python=job_python(PYTHON))
    executor.update_parameters(**wanted.sbatch)
    submitted = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    assert script_text(wanted.sbatch, tmp_path, python=PYTHON) == submitted


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs Slurm's sbatch")
@pytest.mark.parametrize("name", ["every_option", "gres"])
def test_sbatch_itself_understands_every_line(name: str, tmp_path: Path) -> None:
    """sbatch reads all options before it finds out that no controller answers."""
    configuration = tmp_path / "slurm.conf"
    configuration.write_text(
        "ClusterName=none\nSlurmctldHost=localhost\nSlurmctldPort=1\nAuthType=auth/none\n"
        "MessageTimeout=2\nGresTypes=gpu\nNodeName=n1\nPartitionName=gpu Nodes=n1\n"
    )
    script = HERE / "golden" / f"sbatch_{name}.sh"
    environment = {"SLURM_CONF": str(configuration), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["sbatch", "--test-only", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Unable to contact slurm controller" in done.stderr, done.stderr


def test_the_familys_batch_arithmetic_is_shown() -> None:
    shown = family_plan()
    assert shown.world_size == 32
    assert shown.global_batch_size == 1024
    assert shown.batch == "2 x 16 x 32 = 1024"
    assert "2 x 16 x 32 = 1024" in shown.render()


def test_seconds_of_the_time_limit_are_rounded_up_to_minutes() -> None:
    assert plan({"slurm": {"time": "0:01:01"}}).sbatch["time"] == 2


def test_gpus_are_asked_for_only_where_there_are_some() -> None:
    sections = {"slurm": {"ntasks_per_node": 4}}
    assert plan(sections, gpus=True).sbatch["gpus_per_node"] == 4
    assert "gpus_per_node" not in plan(sections, gpus=False).sbatch
    assert "gpus_per_node" not in plan({"slurm": {"gpus_per_node": 0}}, gpus=True).sbatch


def test_the_job_is_named_after_the_run() -> None:
    assert plan({"name": "mine"}).sbatch["job_name"] == "mine"
    assert plan({"name": "mine", "slurm": {"job_name": "its"}}).sbatch["job_name"] == "its"


@pytest.mark.parametrize(
    ("scheduler", "samples", "total", "says"),
    [
        ({"max_steps": 7}, None, 7, "7 steps"),
        ({}, None, None, "1 epoch; steps per epoch are known once"),
        ({"num_epochs": 3}, 10, 8, "3 epochs of 10 samples: 8 steps"),
        ({"num_epochs": 3, "max_steps": 5}, 10, 5, "5 steps"),
        ({"num_epochs": 2, "max_steps": 5}, None, None, "at most 5 steps"),
    ],
)
def test_steps_are_counted_as_far_as_they_are_known(
    scheduler: dict[str, int], samples: int | None, total: int | None, says: str
) -> None:
    sections = {
        "step_scheduler": {"global_batch_size": 4, **scheduler},
        "packed_sequence": {"enabled": False},
    }
    steps = make_plan(load(sections), cluster="slurm", gpus_available=False, samples=samples).steps
    assert steps.total == total
    assert says in steps.text


def test_packing_makes_the_number_of_steps_an_upper_bound() -> None:
    sections = {"step_scheduler": {"global_batch_size": 4}}
    steps = make_plan(load(sections), cluster="slurm", gpus_available=False, samples=10).steps
    assert steps.total is None
    assert "3 steps or fewer" in steps.text


@pytest.mark.parametrize(
    ("every", "sections", "says"),
    [
        (100, {}, ["every 100 steps"]),
        ("none", {}, ["at the end, and when the run is stopped"]),
        (100, {"checkpoint": {"enabled": False}}, ["none: checkpoint.enabled is false"]),
        (
            "auto",
            {"slurm": {"nodes": 50}},
            ["first after 10 steps or 60 s", "of 50 nodes in 3 d"],
        ),
        (
            "AUTO",
            {"resilience": {"mttf": "2h"}},
            ["of 1 node in 2 h (sqrt(2 x cost x MTTF))"],
        ),
        ("auto", {"resilience": {"mttf": "30m"}}, ["saves neither overlap nor take over 10 %"]),
        ("auto", {"resilience": {"mttf": "400d"}}, ["at most 30 minutes of work at risk"]),
        (
            "auto",
            {"model": {"config": None, "pretrained_model_name_or_path": "hub/name"}},
            ["to measure what one costs; then sqrt(2 x cost x MTTF)"],
        ),
    ],
)
def test_the_plan_says_how_often_it_saves(
    every: Any, sections: dict[str, Any], says: list[str]
) -> None:
    sections = {**sections, "step_scheduler": {"ckpt_every_steps": every}}
    made = plan(sections)
    for part in says:
        assert part in made.saves
    assert f"\nsaves        {made.saves}" in made.render()
    assert made.as_json()["saves"] == made.saves


WARNINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "validation is training": (
        {"validation_dataset": {"_target_": "python_stdlib"}},
        "slurm",
        "validation_dataset is the training data",
    ),
    "nothing saved": (
        {"checkpoint": {"enabled": False}},
        "slurm",
        "every restart begins at step 0",
    ),
    "no interval": (
        {"step_scheduler": {"ckpt_every_steps": None}},
        "slurm",
        "ckpt_every_steps is none",
    ),
    "no way back": (
        {"slurm": {"requeue": False}, "resilience": {"resubmit": False}},
        "slurm",
        "slurm.requeue and resilience.resubmit are false",
    ),
    "seconds read as minutes": (
        {"slurm": {"time": 86400}},
        "slurm",
        "YAML reads an unquoted 24:00:00 as 86400",
    ),
    "very long": ({"slurm": {"time": "21-01"}}, "slurm", "slurm.time is very long (21-01:00:00)"),
    "more ranks than cores": ({"slurm": {"nodes": 65}}, "local", "65 ranks share 64 CPU cores"),
    "idle ranks": (
        {"slurm": {"nodes": 4}, "step_scheduler": {"global_batch_size": 2}},
        "slurm",
        "2 sequences for 4 ranks",
    ),
    "uneven batch": (
        {"slurm": {"nodes": 4}, "step_scheduler": {"global_batch_size": 6}},
        "slurm",
        "1 x 2 x 4 = 8 slots for 6 sequences (2 empty)",
    ),
    "too large for the GPU": (
        {"slurm": {"gpu_type": "a100_40gb"}, "dataset": {"max_length": 512}},
        "slurm",
        "GPUs of type a100_40gb have 40 GB",
    ),
    "too large for this machine": ({"slurm": {"nodes": 64}}, "local", "this machine has 512.0 GB"),
    "a container on this machine": (
        {"slurm": {"container_image": "i"}},
        "local",
        "slurm.container_image has no effect on this machine",
    ),
    "downloads into a container": (
        {
            "dataset": {"_target_": "text_instruction", "dataset_name": "org/data"},
            "slurm": {"container_image": "i"},
        },
        "slurm",
        "slurm.hf_home is none: what ranks load from the hub goes into the container's own layer",
    ),
    "an image converted by every rank": (
        {"slurm": {"container_image": "nvcr.io/a/b:1", "container_runtime": "apptainer"}},
        "slurm",
        "`apptainer build image.sif docker://nvcr.io/a/b:1`",
    ),
    "a dependency that may never be met": (
        {"slurm": {"dependency": "afterok:1"}},
        "slurm",
        "if it can never be met the job waits for ever: use --after RUN",
    ),
    "a deadline": (
        {"slurm": {"additional_parameters": {"deadline": "now+1hour"}}},
        "slurm",
        "additional_parameters.deadline: Slurm removes the job",
    ),
    "a job on hold": (
        {"slurm": {"additional_parameters": {"hold": True}}},
        "slurm",
        "scontrol release",
    ),
    "a misspelt key of the model": (
        {"model": {"config": {"model_type": "llama", "hiden_size": 64}}},
        "slurm",
        "model.config.hiden_size looks like hidden_size",
    ),
    "a limit that Slurm may cut": (
        {"slurm": {"additional_parameters": {"time_min": "1:00:00"}}},
        "slurm",
        "Slurm may cut the time limit down",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_what_may_go_wrong_is_warned_of(name: str) -> None:
    sections, cluster, says = WARNINGS[name]
    warned = plan(sections, cluster=cluster, gpus=cluster == "slurm").warnings
    assert any(says in warning for warning in warned), warned


def test_a_sound_configuration_warns_of_nothing() -> None:
    sections = {"model": {"config": {"num_hidden_layers": 2, "hidden_size": 64}}}
    assert plan(sections, gpus=True).warnings == ()


def test_the_plan_is_plain_json() -> None:
    value = json.loads(json.dumps(family_plan().as_json()))
    assert value["world_size"] == 32
    assert value["sbatch"]["time"] == 1440


def test_sizes_that_cannot_be_known_here_are_said_to_be_unknown() -> None:
    shown = family_plan()
    assert shown.estimates.parameters is None
    assert any("not known here" in note for note in shown.notes)


def test_a_component_in_a_container_is_said_to_be_unchecked() -> None:
    sections = {"optimizer": {"_target_": "my_lib.Fast"}, "slurm": {"container_image": "i"}}
    assert plan(sections).notes == (
        "optimizer._target_ (my_lib.Fast): not checked here, ranks run in the container",
    )


def test_a_plan_of_the_same_configuration_is_the_same() -> None:
    one, two = (
        make_plan(
            load_config(SMALL, environ={}), cluster="local", gpus_available=False, machine=MACHINE
        )
        for _ in range(2)
    )
    assert one == two


@pytest.mark.parametrize(
    "path", sorted((HERE.parent / "configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_the_configurations_that_come_along_plan_without_warnings(path: Path) -> None:
    loaded = load_config(path, environ={})
    shown = make_plan(loaded, cluster="slurm", gpus_available=True, machine=MACHINE)
    assert shown.warnings == ()


def test_a_range_of_nodes_shows_both_ends_and_charges_for_spares() -> None:
    sections = {
        "slurm": {"nodes": "2-4", "ntasks_per_node": 8, "spare_nodes": 1},
        "step_scheduler": {"global_batch_size": 1024},
        "dataloader": {"batch_size": 2},
    }
    text = plan(sections).render()
    assert "2 to 4 nodes x 8 ranks = 16 to 32" in text
    assert "2 x 16 x 32 = 1024 on 4 nodes" in text
    assert "2 x 32 x 16 = 1024 on 2" in text
    assert "8 GPUs idle until another one fails: 5 nodes are charged, 25% more" in text
    assert "spare" not in plan(sections, cluster="local").render()


def test_a_range_of_nodes_is_asked_for_without_a_number_of_tasks() -> None:
    """Slurm would take the lower end: see ``job_shape``."""
    slurm = {"nodes": "2-4", "ntasks_per_node": 8, "cpus_per_task": 12, "spare_nodes": 1}
    wanted = plan({"slurm": slurm}).sbatch
    assert (wanted["nodes"], wanted["cpus_per_task"]) == ("3-5", 96)
    assert "ntasks_per_node" not in wanted
    assert wanted["additional_parameters"]["no-kill"] is True


def test_memory_of_a_range_of_nodes_is_that_of_the_fewest() -> None:
    def memory(nodes: Any) -> Any:
        return plan({"slurm": {"nodes": nodes, "ntasks_per_node": 8}}).estimates.rank_memory

    assert memory("1-4").parameters == memory(1).parameters > memory(4).parameters
