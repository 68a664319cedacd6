"""The part of the ranks' command line that starts their container, and its environment. Pure.

Sources: github.com/NVIDIA/pyxis ("Usage"), apptainer-exec(1), the user guides of Apptainer and
SingularityCE ("Environment and Metadata").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.container.image import normalise_image
from launcher.container.mounts import Mount, container_mounts
from launcher.container.runtime import Runtime
from train.config import RunConfig
from train.rundir import RunDir

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
