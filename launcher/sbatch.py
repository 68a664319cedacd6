"""The batch job's parameters, as submitit's SlurmExecutor takes them, and the script's text.

Sources: sbatch(1) of Slurm 22.05 to 24.11, and ``submitit/slurm/slurm.py`` of 1.5.4. Pure.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.environment.modules import module_lines
from launcher.sbatch_options import option_name
from train.config import RunConfig
from train.config.job import SlurmConfig

SETUP = ("export PYTHONSAFEPATH=1",)
"""A ``train.py`` in the working directory must not shadow our packages in the job's Python."""


def sbatch_parameters(config: RunConfig, *, name: str, gpus_available: bool) -> dict[str, Any]:
    """Arguments for ``SlurmExecutor.update_parameters``; options that are not wanted are absent.

    ``time`` is in whole minutes, rounded up as sbatch itself does: submitit's time-limit handling
    needs an int. The pickled job runs once, as the batch script's process (``use_srun=False``);
    it starts the ranks itself.
    """
    slurm = config.slurm
    wanted = {
        "job_name": slurm.job_name or name,
        **job_shape(slurm),
        "time": -(-slurm.time // 60),
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "gpus_per_node": gpus_per_node(slurm, gpus_available=gpus_available),
        "gres": slurm.gres,
        "mem": slurm.mem,
        "mem_per_cpu": slurm.mem_per_cpu,
        "constraint": slurm.constraint,
        "nodelist": slurm.nodelist,
        "exclude": slurm.exclude,
        "exclusive": slurm.exclusive or None,
        "dependency": slurm.dependency,
        "mail_type": slurm.mail_type,
        "mail_user": slurm.mail_user,
        "comment": slurm.comment,
        "signal_delay_s": slurm.signal_lead_s,
        "setup": [*SETUP, *module_lines(slurm.modules), *slurm.setup],
        "stderr_to_stdout": True,
        "use_srun": False,
        "additional_parameters": _additional(slurm),
    }
    chosen = {key: value for key, value in wanted.items() if value is not None}
    # submitit's own default would be refused where accounting enforces known wckeys.
    return {**chosen, "wckey": None}


def job_shape(slurm: SlurmConfig) -> dict[str, Any]:
    """Nodes, tasks and CPUs of the job.

    With a number of tasks, given or implied by ``--ntasks-per-node``, Slurm 22.05 settles for the
    lower end of a range of nodes although more are idle (measured). So a range is asked for with
    one task per node that has the CPUs of all ranks there.
    """
    nodes, cpus = slurm.job_nodes.as_written(), slurm.cpus_per_task
    if slurm.nodes.fixed:
        shape = {"nodes": nodes, "ntasks_per_node": slurm.ntasks_per_node, "cpus_per_task": cpus}
    else:
        shape = {"nodes": nodes, "cpus_per_task": slurm.ntasks_per_node * (cpus or 1)}
    return {key: value for key, value in shape.items() if value is not None}


def gpus_per_node(slurm: SlurmConfig, *, gpus_available: bool) -> str | int | None:
    """Value of ``--gpus-per-node``: ``8``, ``h100:8``, or None for no GPUs (or GPUs by gres)."""
    count = slurm.gpus_per_node
    if count is None and slurm.gres is None and (gpus_available or slurm.gpu_type):
        count = slurm.ntasks_per_node
    if not count:
        return None
    return f"{slurm.gpu_type}:{count}" if slurm.gpu_type else count


def _additional(slurm: SlurmConfig) -> dict[str, Any]:
    """Options that submitit has no argument for."""
    options: dict[str, Any] = {"requeue" if slurm.requeue else "no-requeue": True}
    if slurm.job_nodes.max > 1:
        # A lost node shrinks the allocation instead of ending the job; the supervisor goes on.
        options["no-kill"] = True
    for key in ("reservation", "begin"):
        if getattr(slurm, key) is not None:
            options[key] = getattr(slurm, key)
    given = {option_name(key): value for key, value in slurm.additional_parameters.items()}
    return options | given


_SUPERVISED = (
    'trap : TERM; "$@"; code=$?; n=${SLURM_RESTART_COUNT:-0}; '
    "if [ $code -eq 137 ] && [ $n -lt 1000 ]; then "
    'case "$(scontrol show job --oneliner "$SLURM_JOB_ID")" in *" Restarts=$n "*) '
    'scontrol requeue Incomplete "$SLURM_JOB_ID" && sleep 60;; esac; fi; exit $code'
)
"""Outlives TERM and waits for the supervisor; brings the job back when that was killed (137).

Not when Slurm has restarted the job meanwhile: a node that was cut off may come back.
"""


def job_python(python: str = sys.executable) -> str:
    """How the batch script starts Python: under a shell that TERM does not end.

    scancel sends TERM to the batch script's processes; when bash ends, the site's process tracking
    may kill the supervisor before it has written its last word. And when the supervisor is killed
    (``kill -9``, the kernel short of memory) Slurm takes the job for failed: this shell requeues
    it, so that its successor goes on. ``Incomplete``: never a job that ends as it is.
    """
    return f"exec sh -c {shlex.quote(_SUPERVISED)} supervisor {shlex.quote(python)}"


def script_text(
    parameters: Mapping[str, Any], folder: Path, *, python: str = sys.executable
) -> str:
    """The batch script exactly as submitit writes it for these parameters and this folder."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{job_python(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **parameters))
