"""Ranks inside a container on a real Slurm, the supervisor outside; what is missing is named."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind, read_events
from submitrain.launcher import Run, launch
from submitrain.monitor.diagnose.run import diagnose_run
from submitrain.status import RunState
from tests.cluster.cluster import SlurmCluster
from tests.images import BIN, make_image
from tests.paths import TOY_RANK
from tests.tiny import attempts, curve, launch_faulty, tiny_config, write_samples

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]
WAIT_S = 300.0
SECRET = "hf-5Ecr3t-7"
USERS_CODE = '''
import os
import time

import torch


class Tell(torch.optim.AdamW):
    """Says where it is built: inside the image there is a marker at the root."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        token, inside = len(os.environ["HF_TOKEN"]), os.path.exists("/.inside")
        print("built", inside, os.getcwd(), os.environ["PLAIN"], token, flush=True)

    def step(self, closure=None):
        time.sleep(0.2)
        return super().step(closure)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster) -> Path:
    """A user's project on a cluster with the stand-in of Apptainer."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root: run this test as root, e.g. in a container")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def until(run: Run, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    """Wait until something holds of a run that goes on."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        assert not run.run_dir.summary.exists(), run.run_dir.summary.read_text()
        time.sleep(0.1)


def toy(project: Path, monkeypatch: pytest.MonkeyPatch, image: Path | str, **slurm: Any) -> Run:
    """A run of toy ranks in a container."""
    shutil.copy(TOY_RANK, project)
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "toy_rank")
    shape = {"nodes": 2, "ntasks_per_node": 1, "time": "10m", "container_image": str(image)}
    return launch(
        tiny_config(
            project,
            slurm={**shape, "extra_mounts": [f"{project}:{project}"], **slurm},
            step_scheduler={"max_steps": 10},
        ),
        cluster="slurm",
    )


def test_a_training_inside_survives_a_dead_rank_and_a_requeue(
    project: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster
) -> None:
    image = make_image(project / "image", PLAIN="of the image", HF_TOKEN="of the image")
    samples = write_samples(project / "samples.jsonl")
    (project / "mine.py").write_text(USERS_CODE)
    monkeypatch.setenv("MY_HF", SECRET)
    monkeypatch.setenv("PLAIN", "of the host")
    config = tiny_config(
        project,
        dataset={"dataset_name": "/data/samples.jsonl"},
        optimizer={"_target_": "mine.Tell", "lr": 3e-3},
        step_scheduler={"max_steps": 16},
        checkpoint={"checkpoint_dir": str(project / "kept")},
        slurm={
            "nodes": 2,
            "ntasks_per_node": 1,
            "time": "10m",
            "cpus_per_task": 1,
            "container_image": str(image),
            "hf_token": "${MY_HF}",
            "extra_mounts": [f"{samples}:/data/samples.jsonl:ro"],
        },
        on_success="test -e /.inside && echo inside || echo outside",
    )
    killed = {"moment": "step", "kind": "kill", "rank": 1, "step": 6}
    run = launch_faulty(config, killed, cluster="slurm")
    until(run, lambda: len(run.metrics()) >= 9)
    starts = read_events(run.run_dir.events(0), kinds=frozenset({Kind.START}))
    pid = list(starts)[-1]["pid"]
    assert Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if SECRET.encode() in line]
    slurm_cluster.run("scontrol", "requeue", run.status().job_ids[-1])
    assert run.wait(WAIT_S).state is RunState.FINISHED
    causes = [end["cause"] for end in attempts(run.folder)]
    assert causes == ["rank_died", "requeued", "finished"]
    assert set(curve(run.folder)) == set(range(1, 17))
    kept = project / "kept" / run.run_id
    assert (kept / "step-00000016" / "manifest.json").is_file()
    for attempt in (1, 2, 3):
        for rank in (0, 1):
            said = run.logs(rank=rank, attempt=attempt)
            assert f"built True {run.folder} of the image {len(SECRET)}" in said
    assert (run.folder / "reports" / "on_success.log").read_text() == "outside\n"


def test_what_is_missing_everywhere_stops_the_run_and_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(project / "image")
    gone = ["/nowhere/data:/data:ro", f"{project}:{project}"]
    broken: dict[str, tuple[Run, str]] = {
        "image": (toy(project, monkeypatch, "/nowhere/a.sif"), "could not open image"),
        "runtime": (
            toy(project, monkeypatch, image, container_runtime="singularity"),
            "execve(): singularity: No such file",
        ),
        "mount": (
            toy(project, monkeypatch, image, extra_mounts=gone),
            "mount source /nowhere/data doesn't exist",
        ),
    }
    for run, words in broken.values():
        run.wait(WAIT_S)
        [end] = attempts(run.folder)
        assert (end["cause"], end["action"]) == ("container_error", "stop")
        status = run.status()
        assert status.state is RunState.FAILED
        assert words in status.why
        assert "on every node" in status.why
        found = diagnose_run(run.folder)
        assert (found.kind, found.remedy.step) == ("container_error", "fix")


def test_a_node_that_lacks_the_image_is_left_for_a_spare(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(project / "image")
    partly = project / "bin" / "apptainer"
    partly.parent.mkdir()
    words = f"could not open image {image}: failed to retrieve path for {image}"
    lacks = f"{{ echo 'FATAL:   {words}' >&2; exit 255; }}"
    partly.write_text(
        f'#!/bin/bash\n[ $SLURMD_NODENAME != node2 ] || {lacks}\nexec {BIN / "apptainer"} "$@"\n'
    )
    partly.chmod(0o755)
    monkeypatch.setenv("PATH", f"{partly.parent}{os.pathsep}{os.environ['PATH']}")
    run = toy(project, monkeypatch, image, spare_nodes=1, nodelist="node[1-3]")
    assert run.wait(WAIT_S).state is RunState.FINISHED
    ends = attempts(run.folder)
    assert [end["cause"] for end in ends] == ["container_error", "container_error", "finished"]
    assert [one["node"] for one in ends[0]["strikes"]] == ["node2"]
    assert ends[-1]["nodes"] == ["node1", "node3"]
