"""Containers: who runs them, command lines, mounts, environment, and the path check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from submitrain.config import RunConfig
from submitrain.errors import ConfigError, UserError
from submitrain.launcher.container import (
    ImageForm,
    Runtime,
    choose_runtime,
    container_mounts,
    container_step,
    form_of,
    normalise_image,
)
from submitrain.launcher.container_paths import outside_path, path_problems
from submitrain.launcher.plan.inputs import check_inputs
from submitrain.launcher.plan.prepare import srun_text
from submitrain.launcher.supervisor.processes import package_root
from submitrain.launcher.supervisor.srun import StepShape, srun_command
from submitrain.run_folder import RunDir
from tests.config_parts import load, plan

RUN = RunDir(Path("/shared/runs/demo"))
RUNS = Path("/shared/runs")
SHAPE = StepShape(num_nodes=4, tasks_per_node=8, cpus_per_task=16, has_gpus=True)
NAMES = ("HF_TOKEN", "SUBMITRAIN_RUN_DIR")


def config(sections: dict[str, Any] | None = None, **slurm: Any) -> RunConfig:
    """Four nodes of eight ranks in a container."""
    shape = {"nodes": 4, "ntasks_per_node": 8, "container_image": "/images/a.sqsh"}
    base = {"dataset": {"_target_": "python_stdlib"}, "slurm": {**shape, **slurm}}
    return RunConfig.model_validate({**base, **(sections or {})})


def words(chosen: RunConfig, runtime: Runtime, shape: StepShape = SHAPE) -> list[str]:
    """The part of the command line that differs from a bare one, from the container on."""
    container = container_step(chosen, RUN, runtime, has_gpus=shape.has_gpus, variables=NAMES)
    line = srun_command(shape, chosen, RUN, attempt=1, container=container)
    return line[line.index("--gpu-bind=none") + 1 :] if shape.has_gpus else line[13:]


GOLDEN = {
    "pyxis": (
        {
            "container_image": "docker://nvcr.io/nvidia/nemo:25.07",
            "container_workdir": "/work",
            "srun_args": ["--mpi=none"],
        },
        Runtime.PYXIS,
        "--container-image=nvcr.io#nvidia/nemo:25.07 --container-mounts=/lustre/data:/data:ro,"
        "/shared/runs/demo:/shared/runs/demo,/shared/runs/.cache:/shared/runs/.cache,{root}:ro "
        "--no-container-mount-home --container-workdir=/work "
        "--container-env=HF_TOKEN,SUBMITRAIN_RUN_DIR --mpi=none "
        "python3 -m submitrain.launcher.worker.rank",
    ),
    "apptainer": (
        {"container_image": "/images/a.sif", "srun_args": ["--mpi=none"]},
        Runtime.APPTAINER,
        "--mpi=none apptainer exec --nv --no-home --bind /lustre/data:/data:ro "
        "--bind /shared/runs/demo:/shared/runs/demo "
        "--bind /shared/runs/.cache:/shared/runs/.cache --bind {root}:ro --pwd /shared/runs/demo "
        "/images/a.sif python3 -m submitrain.launcher.worker.rank",
    ),
    "singularity on AMD": (
        {"container_image": "rocm/pytorch:latest", "gpu_type": "mi300x"},
        Runtime.SINGULARITY,
        "singularity exec --rocm --no-home --bind /lustre/data:/data:ro "
        "--bind /shared/runs/demo:/shared/runs/demo "
        "--bind /shared/runs/.cache:/shared/runs/.cache --bind {root}:ro --pwd /shared/runs/demo "
        "docker://rocm/pytorch:latest python3 -m submitrain.launcher.worker.rank",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_command_line_of_a_step_in_a_container(name: str) -> None:
    slurm, runtime, expected = GOLDEN[name]
    chosen = config(extra_mounts=["/lustre/data:/data:ro"], **slurm)
    root = package_root()
    assert " ".join(words(chosen, runtime)) == expected.format(root=f"{root}:{root}")


def test_without_gpus_no_gpu_is_brought_into_the_container() -> None:
    shape = StepShape(num_nodes=1, tasks_per_node=1, cpus_per_task=None, has_gpus=False)
    line = words(config(container_image="/a.sif"), Runtime.APPTAINER, shape)
    assert not {"--nv", "--rocm"} & set(line)


@pytest.mark.parametrize(
    ("runtime", "prefix"),
    [(Runtime.APPTAINER, "APPTAINERENV_"), (Runtime.SINGULARITY, "SINGULARITYENV_")],
)
def test_variables_reach_a_wrapped_rank_by_name_and_never_on_the_command_line(
    runtime: Runtime, prefix: str
) -> None:
    chosen = config(container_image="/a.sif", hf_token="${HF_TOKEN}")
    container = container_step(chosen, RUN, runtime, has_gpus=True, variables=NAMES)
    assert container is not None
    host = {"HF_TOKEN": "hf-5Ecr3t", "LD_PRELOAD": "/host.so", "PYTHONHOME": "/host", "A": "b"}
    given = container.environment(host, NAMES)
    assert given == {"HF_TOKEN": "hf-5Ecr3t", "A": "b", f"{prefix}HF_TOKEN": "hf-5Ecr3t"}
    line = srun_command(SHAPE, chosen, RUN, attempt=1, container=container)
    assert not [word for word in line if "5Ecr3t" in word or "${" in word or "HF_TOKEN" in word]


def test_pyxis_learns_names_only() -> None:
    chosen = config(hf_token="${HF_TOKEN}")
    container = container_step(chosen, RUN, Runtime.PYXIS, has_gpus=True, variables=NAMES)
    assert container is not None
    assert container.environment({"HF_TOKEN": "x"}, NAMES) == {"HF_TOKEN": "x"}


@pytest.mark.parametrize(
    ("image", "asked", "installed", "expected"),
    [
        ("/a.sqsh", "auto", {Runtime.APPTAINER}, Runtime.PYXIS),
        ("/a.sif", "auto", {Runtime.PYXIS}, Runtime.APPTAINER),
        ("/a.sif", "auto", {Runtime.SINGULARITY}, Runtime.SINGULARITY),
        ("/sandbox", "auto", set(), Runtime.APPTAINER),
        ("oras://r.io/a:1", "auto", {Runtime.PYXIS}, Runtime.APPTAINER),
        ("nvcr.io/a/b:1", "auto", set(Runtime), Runtime.PYXIS),
        ("nvcr.io/a/b:1", "auto", {Runtime.SINGULARITY}, Runtime.SINGULARITY),
        ("nvcr.io/a/b:1", "auto", set(), Runtime.PYXIS),
        ("nvcr.io/a/b:1", "apptainer", {Runtime.PYXIS}, Runtime.APPTAINER),
        ("nvcr.io/a/b:1", "bare", set(Runtime), None),
    ],
)
def test_the_runtime_follows_from_the_image_and_from_what_is_installed(
    image: str, asked: str, installed: set[Runtime], expected: Runtime | None
) -> None:
    slurm = config(container_image=image, container_runtime=asked).slurm
    assert choose_runtime(slurm, installed) is expected


@pytest.mark.parametrize(
    ("image", "enroot", "apptainer"),
    [
        *(
            (image, "nvcr.io#nvidia/nemo:25.07", "docker://nvcr.io/nvidia/nemo:25.07")
            for image in (
                "docker://nvcr.io/nvidia/nemo:25.07",
                "nvcr.io/nvidia/nemo:25.07",
                "nvcr.io#nvidia/nemo:25.07",
            )
        ),
        ("localhost:5000/team/a", "localhost:5000#team/a", "docker://localhost:5000/team/a"),
        ("pytorch/pytorch:latest", "pytorch/pytorch:latest", "docker://pytorch/pytorch:latest"),
        ("ubuntu:22.04", "ubuntu:22.04", "docker://ubuntu:22.04"),
        ("/images/nemo.sqsh", "/images/nemo.sqsh", "/images/nemo.sqsh"),
        ("nemo.sqsh", "./nemo.sqsh", "./nemo.sqsh"),
        ("../nemo.sif", "../nemo.sif", "../nemo.sif"),
        ("dockerd://local:tag", "dockerd://local:tag", "dockerd://local:tag"),
        ("library://a/b:c", "library://a/b:c", "library://a/b:c"),
        ("oci-archive:/a.tar", "oci-archive:/a.tar", "oci-archive:/a.tar"),
    ],
)
def test_images_are_spelled_as_each_runtime_wants_them(
    image: str, enroot: str, apptainer: str
) -> None:
    assert normalise_image(image, pyxis=True) == enroot
    assert normalise_image(image, pyxis=False) == apptainer


def test_a_name_without_a_registry_is_no_path() -> None:
    assert form_of("team/image") is ImageForm.REGISTRY
    assert form_of("./image") is ImageForm.SIF


def shown(mounts: list[str], sections: dict[str, Any] | None = None, **slurm: Any) -> list[str]:
    chosen = config(sections, extra_mounts=mounts, **slurm)
    return [str(mount) for mount in container_mounts(chosen, RUN)]


def test_a_mount_of_the_user_that_covers_what_ranks_write_is_enough() -> None:
    root = package_root()
    mounts = shown(["/shared:/shared"], hf_home="/shared/hf")
    assert mounts == ["/shared:/shared", f"{root}:{root}:ro"]


@pytest.mark.parametrize("mount", ["/shared:/shared:ro", "/shared:/elsewhere"])
def test_a_mount_that_ranks_cannot_write_under_the_same_path_is_not_enough(mount: str) -> None:
    assert "/shared/runs/demo:/shared/runs/demo" in shown([mount])


def test_a_deeper_mount_of_the_user_decides_over_a_wider_one() -> None:
    mounts = shown(["/shared:/shared", "/fast/hf:/shared/hf"], hf_home="/shared/hf")
    assert "/shared/hf:/shared/hf" not in mounts


def test_caches_are_mounted_and_made(tmp_path: Path) -> None:
    data = {"_target_": "python_stdlib", "cache_dir": "/shared/cache"}
    mounts = shown([], {"dataset": data}, hf_home="/shared/hf")
    assert {"/shared/cache:/shared/cache", "/shared/hf:/shared/hf"} <= set(mounts)
    assert not any(".cache" in mount for mount in mounts)


def test_checkpoints_kept_elsewhere_are_mounted_too(tmp_path: Path) -> None:
    run, kept = RunDir(tmp_path / "run"), tmp_path / "kept"
    run.root.mkdir()
    kept.mkdir()
    run.checkpoints.symlink_to(kept)
    assert f"{kept}:{kept}" in [str(mount) for mount in container_mounts(config(), run)]


CHECKPOINTS = {"checkpoint": {"checkpoint_dir": "/shared/checkpoints"}}
PATHS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "checkpoints are mounted under another name": (
        CHECKPOINTS,
        ["/shared/checkpoints:/checkpoints"],
        "checkpoint.checkpoint_dir: /shared/checkpoints does not exist inside the container: "
        "/shared/checkpoints:/checkpoints shows it as /checkpoints; mount it under its own path "
        "(/shared/checkpoints:/shared/checkpoints)",
    ),
    "checkpoints exist inside only": (
        {"checkpoint": {"checkpoint_dir": "/checkpoints/a"}},
        ["/shared/checkpoints:/checkpoints"],
        "checkpoint.checkpoint_dir: /checkpoints/a exists only inside the container, outside it is "
        "/shared/checkpoints/a: monitoring and resume look for it on the host; write "
        "/shared/checkpoints/a, and mount it under the same path "
        "(/shared/checkpoints:/shared/checkpoints)",
    ),
    "checkpoints are read-only": (
        CHECKPOINTS,
        ["/shared:/shared:ro", "/shared/runs:/shared/runs"],
        "checkpoint.checkpoint_dir: /shared/checkpoints is read-only inside the container "
        "(/shared:/shared:ro), and ranks write there; remove :ro, or add "
        "/shared/checkpoints:/shared/checkpoints to slurm.extra_mounts",
    ),
    "data is not mounted": (
        {"dataset": {"dataset_name": "/data/a.jsonl"}},
        ["/scratch:/scratch"],
        "dataset.dataset_name: /data/a.jsonl is under no mount of the container: ranks will not "
        "find it; add /data/a.jsonl:/data/a.jsonl:ro to slurm.extra_mounts",
    ),
    "data is mounted under another name": (
        {"dataset": {"dataset_name": "/lustre/data/a.jsonl"}},
        ["/lustre/data:/data:ro"],
        "dataset.dataset_name: /lustre/data/a.jsonl does not exist inside the container: "
        "/lustre/data:/data:ro shows it as /data/a.jsonl; write /data/a.jsonl, or mount it under "
        "its own path (/lustre/data:/lustre/data)",
    ),
    "a model is not mounted": (
        {"model": {"pretrained_model_name_or_path": "/models/a"}},
        [],
        "model.pretrained_model_name_or_path: /models/a is under no mount of the container: ranks "
        "will not find it; add /models/a:/models/a:ro to slurm.extra_mounts",
    ),
    "a tokenizer is not mounted": (
        {"model": {"tokenizer": "/models/t"}},
        [],
        "model.tokenizer: /models/t is under no mount of the container: ranks will not find it; "
        "add /models/t:/models/t:ro to slurm.extra_mounts",
    ),
    "a cache is read-only": (
        {"dataset": {"_target_": "python_stdlib", "cache_dir": "/cache"}},
        ["/cache:/cache:ro"],
        "dataset.cache_dir: /cache is read-only inside the container (/cache:/cache:ro), and ranks "
        "write there; remove :ro, or add /cache:/cache to slurm.extra_mounts",
    ),
    "a cache is relative": (
        {"dataset": {"_target_": "python_stdlib", "cache_dir": "cache"}},
        [],
        "dataset.cache_dir: expected an absolute path with a container, got 'cache'; the ranks' "
        "working folder is another one inside: write the whole path, or set "
        "slurm.container_workdir to a mounted folder",
    ),
    "the run folder is hidden": (
        {},
        ["/other:/shared"],
        "runs_dir: inside, /other:/shared hides /shared/runs: the supervisor would wait for events "
        "that nobody sees; mount it elsewhere, or move runs_dir",
    ),
    "the run folder is read-only": (
        {},
        ["/shared:/shared:ro"],
        "runs_dir: /shared/runs is read-only inside the container (/shared:/shared:ro), and ranks "
        "write there; remove :ro, or add /shared/runs:/shared/runs to slurm.extra_mounts",
    ),
    "two mounts in one place": (
        {},
        ["/a:/data", "/b:/data"],
        "slurm.extra_mounts.1: expected one mount at /data, got /a and /b; remove one",
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_ranks_would_miss_or_lose_is_refused_with_the_remedy(name: str) -> None:
    sections, mounts, expected = PATHS[name]
    chosen = config(sections, extra_mounts=mounts)
    assert list(path_problems(chosen, runs_dir=RUNS, workdir=Path("/home/me"))) == [expected]


FINE: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "nothing is mounted": ({}, [], {}),
    "checkpoints that we mount": (CHECKPOINTS, [], {}),
    "relative checkpoints": ({"checkpoint": {"checkpoint_dir": "ck"}}, [], {}),
    "one wide mount": (
        {**CHECKPOINTS, "dataset": {"dataset_name": "/shared/a.jsonl", "cache_dir": "/shared/c"}},
        ["/shared:/shared"],
        {"hf_home": "/shared/hf"},
    ),
    "data under another name": ({"dataset": {"dataset_name": "/d/a.jsonl"}}, ["/l:/d:ro"], {}),
    "hub names": (
        {
            "model": {"pretrained_model_name_or_path": "org/model", "tokenizer": "org/t"},
            "dataset": {"dataset_name": "tatsu-lab/alpaca"},
        },
        [],
        {},
    ),
    "a cache under another name": ({}, ["/lustre/hf:/hf"], {"hf_home": "/hf"}),
    "relative data in a mounted working folder": (
        {"dataset": {"dataset_name": "data/a.jsonl"}},
        ["/home/me:/work"],
        {"container_workdir": "/work"},
    ),
}


@pytest.mark.parametrize("name", FINE)
def test_what_exists_inside_and_lasts_is_not_complained_of(name: str) -> None:
    sections, mounts, slurm = FINE[name]
    chosen = config(sections, extra_mounts=mounts, **slurm)
    assert list(path_problems(chosen, runs_dir=RUNS, workdir=Path("/home/me"))) == []


def test_the_host_is_asked_for_data_where_it_has_them() -> None:
    chosen = config(extra_mounts=["/lustre/data:/data:ro"])
    assert outside_path(Path("/data/a.jsonl"), chosen) == Path("/lustre/data/a.jsonl")
    bare = config(extra_mounts=["/lustre/data:/data:ro"], container_runtime="bare")
    assert outside_path(Path("/data/a.jsonl"), bare) == Path("/data/a.jsonl")


@pytest.mark.parametrize(
    ("slurm", "says"),
    [
        ({"extra_mounts": ["data:/data"]}, "expected src:dst or src:dst:ro with absolute paths"),
        ({"extra_mounts": ["/a:data"]}, "expected src:dst or src:dst:ro with absolute paths"),
        ({"extra_mounts": ["/a b:/a"]}, "expected src:dst or src:dst:ro with absolute paths"),
        ({"extra_mounts": ["/a:/a:or"]}, "not or, got '/a:/a:or'"),
        ({"extra_mounts": ["/a:/a:ro+rw"]}, "expected ro or rw, not both"),
        (
            {"extra_mounts": ["/a:/a:ro+nosuid"], "container_runtime": "apptainer"},
            "expected flags among ro, rw",
        ),
        ({"container_workdir": "work"}, "slurm.container_workdir: expected an absolute path"),
        ({"container_image": "/a.sif", "container_runtime": "pyxis"}, "a .sif is Apptainer's"),
        ({"container_runtime": "apptainer"}, "a .sqsh is enroot's"),
        (
            {"container_image": "me@r.io#a/b", "container_runtime": "apptainer"},
            "`apptainer registry login`",
        ),
        ({"container_image": "a b"}, "without blanks"),
        ({"srun_args": ["--container-mounts=/a:/a"]}, "--container-mounts is set by submitrain"),
        ({"container_image": None, "container_runtime": "pyxis"}, "expected slurm.container_image"),
    ],
)
def test_what_no_runtime_would_take_is_refused(slurm: dict[str, Any], says: str) -> None:
    wanted = {"container_image": "/images/a.sqsh", **slurm}
    with pytest.raises(ConfigError) as caught:
        load({"slurm": wanted})
    assert says in str(caught.value)


def test_the_plan_shows_the_ranks_step() -> None:
    slurm = {"container_image": "/a.sif", "env": {"A": "b"}, "gpus_per_node": 1, "nodes": "2-4"}
    loaded = load({"slurm": slurm})
    text = srun_text(plan({"slurm": slurm}), loaded.config, RUN)
    assert "--nodes=4 --ntasks=4" in text
    assert "--cpus-per-task=1 --gpu-bind=none apptainer exec --nv --no-home" in text
    assert text.endswith("/a.sif python3 -m submitrain.launcher.worker.rank")
    image = {**slurm, "container_image": "/a.sqsh"}
    text = srun_text(plan({"slurm": image}), load({"slurm": image}).config, RUN)
    assert "--container-env=A,OMP_NUM_THREADS,PYTHONPATH,PYTHONSAFEPATH" in text
    bare = srun_text(plan({"slurm": {}}), load({"slurm": {}}).config, RUN)
    assert "container" not in bare
    assert bare.endswith("-m submitrain.launcher.worker.rank")


def test_data_are_looked_for_where_the_host_has_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "t").mkdir()
    mounts = [f"{tmp_path}:/data:ro"]
    there = {"dataset": {"dataset_name": "/data/a.jsonl"}, "model": {"tokenizer": "/data/t"}}
    check_inputs(config(there, extra_mounts=mounts), Path("/"), contained=True)
    relative = {"dataset": {"dataset_name": "./a.jsonl"}}
    inside = config(relative, extra_mounts=mounts, container_workdir="/data")
    check_inputs(inside, Path("/"), contained=True)
    missing = {"dataset": {"dataset_name": "/data/b.jsonl"}}
    with pytest.raises(UserError, match=rf"got /data/b.jsonl: no such file \({tmp_path}/b.jsonl"):
        check_inputs(config(missing, extra_mounts=mounts), Path("/"), contained=True)


def test_a_missing_image_is_refused_unless_this_machine_may_not_see_it(tmp_path: Path) -> None:
    image = tmp_path / "a.sif"
    with pytest.raises(UserError, match=r"slurm\.container_image: .* no such file"):
        check_inputs(config(container_image=str(image)), tmp_path, contained=True)
    check_inputs(config(container_image="/of/the/nodes/a.sif"), tmp_path, contained=True)
    image.touch()
    check_inputs(config(container_image="./a.sif"), tmp_path, contained=True)
