"""What the keys of ``slurm`` say together, before sbatch or srun would refuse or misread them.

Pure; imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitrain.config.job import SlurmConfig


_MOUNT = re.compile(r"^/[^:,\s]*:/[^:,\s]*(:(?P<flags>[a-z-]+(\+[a-z-]+)*))?$")
_MOUNT_FLAGS = frozenset({"ro", "rw"})
_PYXIS_MOUNT_FLAGS = _MOUNT_FLAGS | frozenset(
    {"private", "rprivate", "shared", "rshared", "slave", "rslave", "nosuid", "nodev", "noexec"}
)
"""enroot's, beyond ro and rw (mount(8)); Apptainer takes ro and rw only."""
_MEMORY = re.compile(r"^\d+[KMGT]?B?$", re.IGNORECASE)
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_MODULE = re.compile(r"^[A-Za-z0-9_.+@][A-Za-z0-9_.+@/-]*$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def job_problems(slurm: SlurmConfig) -> Iterator[str]:
    """Problems of the section, one line each, beginning with the key."""
    yield from _texts(slurm)
    yield from _modules(slurm)
    yield from _memory(slurm)
    yield from _gpus(slurm)
    yield from _container(slurm)
    for name in slurm.env:
        if not _VARIABLE.match(name):
            yield (
                f"slurm.env.{name}: expected letters, digits and underscores as a variable's "
                f"name, got {name!r}"
            )


_OWN_FLAGS = frozenset(
    {
        *(
            "--kill-on-bad-exit",
            "-K",
            "--wait",
            "-W",
            "--overlap",
            "--nodes",
            "-N",
            "--ntasks",
            "-n",
            *("--nodelist", "-w", "--exclude", "-x", "--nodefile", "-F"),
        ),
        *("--ntasks-per-node", "--job-name", "-J", "--input", "-i", "--output", "-o", "--error"),
        *("-e", "--export", "--container-image", "--container-mounts", "--container-env"),
        "--container-workdir",
    }
)
"""Options of srun on which supervision rests."""


def _texts(slurm: SlurmConfig) -> Iterator[str]:
    """A line break would end the ``#SBATCH`` line and start a shell command."""
    for key in type(slurm).model_fields:
        value = getattr(slurm, key)
        if isinstance(value, str) and _CONTROL.search(value):
            yield f"slurm.{key}: expected one line of text, got {value!r}"
    for index, line in enumerate(slurm.srun_args):
        if _CONTROL.search(line):
            yield f"slurm.srun_args.{index}: expected one option of srun, got {line!r}"
        if (flag := line.partition("=")[0]) in _OWN_FLAGS:
            yield f"slurm.srun_args.{index}: {flag} is set by submitrain itself: remove it"


def _modules(slurm: SlurmConfig) -> Iterator[str]:
    for index, name in enumerate(slurm.modules):
        if not _MODULE.match(name):
            yield (
                f"slurm.modules.{index}: expected the name of a module, such as cuda/12.4, got "
                f"{name!r}; other commands belong in slurm.setup"
            )


def _memory(slurm: SlurmConfig) -> Iterator[str]:
    for key in ("mem", "mem_per_cpu"):
        value = getattr(slurm, key)
        if value is not None and not _MEMORY.match(value):
            yield (
                f"slurm.{key}: expected a size such as 64G, 512000M or 0 (all of the node), got "
                f"{value!r}; sbatch takes whole numbers with K, M, G or T"
            )
    if slurm.mem is not None and slurm.mem_per_cpu is not None:
        yield (
            "slurm.mem_per_cpu: expected mem (per node) or mem_per_cpu, got both; sbatch takes one "
            "of them: remove the other"
        )


def _gpus(slurm: SlurmConfig) -> Iterator[str]:
    gpus, ranks = slurm.gpus_per_node, slurm.ntasks_per_node
    if gpus and gpus < ranks:
        yield (
            f"slurm.gpus_per_node: expected at least ntasks_per_node ({ranks}), got {gpus}; every "
            "rank needs a GPU of its own: lower ntasks_per_node, or write 0 to train on CPUs"
        )
    in_gres = slurm.gres is not None and "gpu" in slurm.gres.split(":")[0].split(",")
    for key in ("gpus_per_node", "gpu_type"):
        if in_gres and getattr(slurm, key) is not None:
            yield (
                f"slurm.{key}: expected GPUs in gres ({slurm.gres}) or in gpus_per_node and "
                "gpu_type, got both; remove one"
            )
    if gpus == 0 and slurm.gpu_type is not None:
        yield (
            f"slurm.gpu_type: expected none with gpus_per_node 0, got {slurm.gpu_type!r}; remove "
            "one of them"
        )


def _container(slurm: SlurmConfig) -> Iterator[str]:
    for index, mount in enumerate(slurm.extra_mounts):
        if problem := _mount_problem(mount, slurm.container_runtime):
            yield f"slurm.extra_mounts.{index}: expected {problem}, got {mount!r}"
    workdir = slurm.container_workdir
    if workdir is not None and not workdir.startswith("/"):
        yield f"slurm.container_workdir: expected an absolute path inside, got {workdir!r}"
    if slurm.container_image is None:
        for key in ("extra_mounts", "container_workdir"):
            if getattr(slurm, key):
                yield (
                    f"slurm.{key}: expected slurm.container_image with it, got none; without a "
                    "container nothing is mounted: name the image or remove this key"
                )
        if slurm.container_runtime not in ("auto", "bare"):
            yield (
                "slurm.container_runtime: expected slurm.container_image with it, got none; name "
                "the image or remove this key"
            )
        return
    yield from _image(slurm.container_image, slurm.container_runtime)


def _mount_problem(mount: str, runtime: str) -> str | None:
    match = _MOUNT.match(mount)
    if not match:
        return "src:dst or src:dst:ro with absolute paths"
    flags = set((match["flags"] or "rw").split("+"))
    allowed = _PYXIS_MOUNT_FLAGS if runtime in ("auto", "pyxis", "bare") else _MOUNT_FLAGS
    if unknown := sorted(flags - allowed):
        return f"flags among {', '.join(sorted(allowed))} (with +), not {', '.join(unknown)}"
    return "ro or rw, not both" if flags >= _MOUNT_FLAGS else None


def _image(image: str, runtime: str) -> Iterator[str]:
    squashfs, sif = image.endswith((".sqsh", ".squashfs")), image.endswith(".sif")
    if re.search(r"\s", image):
        yield f"slurm.container_image: expected a name or path without blanks, got {image!r}"
    elif runtime == "pyxis" and sif:
        yield (
            f"slurm.container_image: expected a .sqsh file or a registry's name with pyxis, got "
            f"{image!r}; a .sif is Apptainer's: write container_runtime: apptainer, or import the "
            "image with enroot"
        )
    elif runtime in ("apptainer", "singularity") and squashfs:
        yield (
            f"slurm.container_image: expected a .sif file or a registry's name with {runtime}, got "
            f"{image!r}; a .sqsh is enroot's: write container_runtime: pyxis, or build a .sif "
            f"({runtime} build image.sif docker://...)"
        )
    elif (
        runtime in ("apptainer", "singularity") and "@" in image.partition("#")[0] and "#" in image
    ):
        yield (
            f"slurm.container_image: expected an image without a user for {runtime}, got "
            f"{image!r}; credentials come from `{runtime} registry login`"
        )
