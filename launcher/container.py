"""The part of the ranks' command line that starts their container, and its environment. Pure.

Sources: github.com/NVIDIA/pyxis ("Usage"), apptainer-exec(1), the user guides of Apptainer and
SingularityCE ("Environment and Metadata").

Which program runs the ranks' container: asked for, or by the image and by what is installed.

Containers for the ranks: which runtime, which command line, and what exists inside.

The supervisor stays outside, so the host needs no training environment and the image no scheduler.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from submitrain.config import RunConfig
from submitrain.config.job import SlurmConfig
from submitrain.launcher.container_paths import (
    ImageForm,
    Mount,
    container_mounts,
    form_of,
    normalise_image,
)
from submitrain.run_folder import RunDir
from submitrain.slurm.client import ask


class Runtime(StrEnum):
    """Programs that run containers, in the order in which ``auto`` prefers them."""

    PYXIS = "pyxis"
    """The plugin of srun that runs enroot (github.com/NVIDIA/pyxis)."""
    APPTAINER = "apptainer"
    SINGULARITY = "singularity"

    @property
    def wraps(self) -> bool:
        """Whether it is a command before the ranks' own, and not a plugin of srun."""
        return self is not Runtime.PYXIS


_FOR_FORM = {
    ImageForm.SQUASHFS: (Runtime.PYXIS,),
    ImageForm.SIF: (Runtime.APPTAINER, Runtime.SINGULARITY),
    ImageForm.REGISTRY: tuple(Runtime),
}


def choose_runtime(slurm: SlurmConfig, installed: Collection[Runtime] = ()) -> Runtime | None:
    """What runs the image; None without a container. Pure.

    ``auto`` takes the first that can run this form of image among those ``installed``; where none
    of them is, the first that could, so that its own error says what is missing.
    """
    if not slurm.in_container:
        return None
    if slurm.container_runtime != "auto":
        return Runtime(slurm.container_runtime)
    able = _FOR_FORM[form_of(slurm.container_image or "")]
    return next((one for one in able if one in installed), able[0])


def installed_runtimes() -> frozenset[Runtime]:
    """Runtimes on this machine; srun's own help tells whether it has the plugin."""
    found = {one for one in Runtime if one.wraps and shutil.which(one.value)}
    if shutil.which("srun") and "--container-image" in ask(["srun", "--help"]).out:
        found.add(Runtime.PYXIS)
    return frozenset(found)


_ENV_PREFIX = {Runtime.APPTAINER: "APPTAINERENV_", Runtime.SINGULARITY: "SINGULARITYENV_"}
_OF_THE_HOST = ("LD_PRELOAD", "PYTHONHOME")
"""Variables that would have the image's programs load the host's files."""
_ROCM_TYPE = re.compile(r"\bmi\d{2,3}", re.IGNORECASE)


@dataclass(frozen=True)
class ContainerStep:
    """How a step gets into its container."""

    runtime: Runtime
    srun_flags: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    """Words between srun's options and the ranks' command."""
    mounts: tuple[Mount, ...] = ()

    def environment(self, variables: Mapping[str, str], named: tuple[str, ...]) -> dict[str, str]:
        """Environment for srun; ``named`` variables win over the image's own.

        Never by ``--env``: other users of the node can read a command line (ps).
        """
        kept = {name: value for name, value in variables.items() if name not in _OF_THE_HOST}
        prefix = _ENV_PREFIX.get(self.runtime)
        if prefix is None:
            return kept
        return kept | {f"{prefix}{name}": variables[name] for name in named if name in variables}


def container_step(
    config: RunConfig,
    run_dir: RunDir,
    runtime: Runtime,
    *,
    has_gpus: bool,
    variables: tuple[str, ...] = (),
) -> ContainerStep:
    """Flags for srun (pyxis), or the command before the ranks' own (Apptainer, Singularity)."""
    mounts = container_mounts(config, run_dir)
    image = normalise_image(config.slurm.container_image or "", pyxis=not runtime.wraps)
    workdir = config.slurm.container_workdir
    if runtime is Runtime.PYXIS:
        flags = [
            f"--container-image={image}",
            f"--container-mounts={','.join(map(str, mounts))}",
            "--no-container-mount-home",
        ]
        flags += [f"--container-workdir={workdir}"] if workdir else []
        flags += [f"--container-env={','.join(sorted(variables))}"] if variables else []
        return ContainerStep(runtime, srun_flags=tuple(flags), mounts=mounts)
    words = [runtime.value, "exec"]
    if has_gpus:
        words.append(_gpu_flag(config))
    words.append("--no-home")  # packages in ~/.local would shadow the image's
    for mount in mounts:
        words += ["--bind", str(mount)]
    # The working folder of the job need not exist inside; the run folder does.
    words += ["--pwd", workdir or str(run_dir.root), image]
    return ContainerStep(runtime, prefix=tuple(words), mounts=mounts)


def _gpu_flag(config: RunConfig) -> str:
    slurm = config.slurm
    return "--rocm" if _ROCM_TYPE.search(f"{slurm.gpu_type} {slurm.gres}") else "--nv"
