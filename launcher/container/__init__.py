"""Containers for the ranks: which runtime, which command line, and what exists inside.

The supervisor stays outside, so the host needs no training environment and the image no scheduler.
"""

from __future__ import annotations

from launcher.container.command import ContainerStep, container_step
from launcher.container.image import normalise_image
from launcher.container.mounts import Mount, container_mounts
from launcher.container.paths import path_problems
from launcher.container.runtime import Runtime, choose_runtime, installed_runtimes

__all__ = [
    "ContainerStep",
    "Mount",
    "Runtime",
    "choose_runtime",
    "container_mounts",
    "container_step",
    "installed_runtimes",
    "normalise_image",
    "path_problems",
]
