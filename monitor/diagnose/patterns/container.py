"""What container runtimes say when a container does not start.

Sources: pyxis (pyxis_slurmstepd.c), enroot (src/storage_tools, src/runtime.sh), apptainer
(internal/pkg/runtime, internal/pkg/build), srun's and slurmstepd's own words.
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

CONTAINER_RULES = (
    rule(
        F.CONTAINER_ERROR,
        Trust.CAUSE,
        "could not open image|failed to retrieve path for|mount source|manifest unknown|"
        "executable file not found in $path|doesn't exist in container",
        r"fatal:.*(?:could not open image|failed to retrieve path for|mount source .* doesn't "
        r"exist|manifest unknown|executable file not found|doesn't exist in container)",
        any_level=True,
    ),
    rule(
        F.CONTAINER_ERROR,
        Trust.CAUSE,
        "execve",
        r"execve\(\)?:\s*(?:\S*/)?(?:apptainer|singularity|enroot)\b",
        any_level=True,
    ),
    rule(
        F.CONTAINER_ERROR,
        Trust.CAUSE,
        "unrecognized option",
        r"srun: unrecognized option .--container-",
        any_level=True,
    ),
    rule(
        F.CONTAINER_ERROR,
        Trust.CAUSE,
        "enroot-mount: failed to mount|no such file or directory|404 not found|"
        "invalid image format",
        r"(?:pyxis|enroot)\S*:?.{0,160}(?:enroot-mount: failed to mount|no such file or directory|"
        r"404 not found|invalid image format)",
        any_level=True,
    ),
    rule(
        F.CONTAINER_ERROR,
        Trust.EXCEPTION,
        "container creation failed|couldn't start container|failed to import docker image|enroot|"
        "pyxis: child|while making image from oci registry",
        r"fatal:.*container creation failed|couldn't start container|failed to import docker image|"
        r"enroot.{0,40}\[error\]|pyxis: child \d+ failed|"
        r"fatal:.*while making image from oci registry",
        any_level=True,
    ),
)
