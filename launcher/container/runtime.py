"""Which program runs the ranks' container: asked for, or by the image and by what is installed."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from enum import StrEnum

from launcher.container.image import ImageForm, form_of
from monitor.slurm import ask
from train.config.job import SlurmConfig


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
