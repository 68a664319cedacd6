"""The batch job: every long option of sbatch, the parameters for submitit, the script's text. Pure.

Sources: sbatch(1) of Slurm 22.05 to 25.05 (a test holds the tables of options to the installed
sbatch), ``submitit/slurm/slurm.py`` of 1.5.4, and for ``slurm.modules`` module(1) of Environment
Modules and the user guide of Lmod ("LOADEDMODULES").
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from submitrain.config import RunConfig
from submitrain.config.job import SlurmConfig
from submitrain.config.schema import near

_FIND = (
    "command -v module >/dev/null 2>&1 || for f in "
    '"$LMOD_PKG/init/bash" "$MODULESHOME/init/bash" '
    "/etc/profile.d/lmod.sh /etc/profile.d/modules.sh /usr/share/modules/init/bash; "
    'do [ -r "$f" ] && . "$f" && break; done'
)
"""``module`` is a function of the shell, which a batch script need not have (``which`` fails)."""


def module_lines(modules: Sequence[str]) -> list[str]:
    """Lines of the batch script; it ends where a module is not there after loading it.

    ``LOADEDMODULES`` is asked, since older versions of ``module`` exit with 0 whatever happens.
    """
    if not modules:
        return []
    names = " ".join(modules)
    check = (
        f'for m in {names}; do case ":${{LOADEDMODULES:-}}:" in *":$m:"*|*":$m/"*) ;; '
        '*) echo "slurm.modules: $m is not loaded on $(hostname); see: module avail $m" >&2; '
        "exit 1;; esac; done"
    )
    return [_FIND, f"module load {names}", check]


PASSED_ON = frozenset(
    """
    acctg-freq batch bb bbf cluster-constraint consolidate-segments contiguous core-spec
    cores-per-socket cpu-freq deadline delay-boot distribution extra
    extra-node-info gpu-freq gpus-per-socket gres-flags hint hold kill-on-invalid-dep licenses
    mcs-label mem-bind mem-per-gpu mincpus network nice ntasks-per-core ntasks-per-socket
    oom-kill-step overcommit oversubscribe power prefer priority profile propagate reboot
    resv-ports segment sockets-per-node spread-job spread-segments switches thread-spec
    threads-per-core time-min tmp tres-bind tres-per-task use-min-nodes wait-all-nodes wckey
    """.split()  # noqa: SIM905 - a list of words reads better
)
"""Options that ``slurm.additional_parameters`` may hold."""

KEYS = {
    option: option.replace("-", "_")
    for option in """
    account begin comment constraint cpus-per-task dependency exclude exclusive gpus-per-node gres
    job-name mail-type mail-user mem mem-per-cpu nodelist nodes ntasks-per-node partition qos
    requeue reservation time
    """.split()  # noqa: SIM905 - a list of words reads better
} | {
    "gpus": "gpus_per_node",
    "no-requeue": "requeue",
    "nodefile": "nodelist",
    "ntasks": "ntasks_per_node",
    "signal": "signal_lead_s",
}
"""Options with a key of their own in the ``slurm`` section."""

REFUSED = {
    "array": "one launch is one job, which supervises its run and requeues itself; for many runs "
    "use a sweep",
    "chdir": "start the run from that folder",
    "clusters": "the job is watched, requeued and resubmitted on the cluster of its controller; "
    "launch with that cluster's SLURM_CONF",
    "cpus-per-gpu": "use slurm.cpus_per_task: a rank has one GPU, so it is the same number",
    "error": "logs are in the run folder",
    "gpu-bind": "binding GPUs to tasks breaks NCCL's peer access",
    "gpus-per-task": "binding GPUs to tasks breaks NCCL's peer access: use slurm.gpus_per_node",
    "ignore-pbs": "the batch script is written by submitit and holds no #PBS line",
    "input": "ranks read no standard input",
    "no-kill": "it is set already where there is more than one node",
    "ntasks-per-gpu": "use slurm.ntasks_per_node",
    "open-mode": "it is append already, so that a requeue keeps the logs",
    "output": "logs are in the run folder",
    "stepmgr": "hung and broken steps are found and ended through slurmctld",
    "test-only": "use the plan command",
    "wait": "use --wait of the launch command: sbatch's own ends with the first job, the run goes "
    "on in others",
    "wrap": "submitrain writes the command",
    **dict.fromkeys(
        ("container", "container-id"),
        "use slurm.container_image: the job's own process stays outside",
    ),
    **dict.fromkeys(
        ("export", "export-file", "get-user-env"),
        "the ranks' environment would be lost: use slurm.env",
    ),
    **dict.fromkeys(("gid", "uid"), "a run is submitted by whoever it belongs to"),
    **dict.fromkeys(("parsable", "quiet", "verbose"), "submitit reads sbatch's answer"),
    **dict.fromkeys(("autocomplete", "help", "usage", "version"), "it prints and submits nothing"),
}
"""Options that nobody may set, and why."""


def additional_problems(slurm: SlurmConfig) -> Iterator[str]:
    """What is wrong with ``slurm.additional_parameters``, one line each, with the key first."""
    for key, value in slurm.additional_parameters.items():
        option = option_name(key)
        where = f"slurm.additional_parameters.{key}"
        if option in KEYS:
            yield f"{where}: has a key of its own; write slurm.{KEYS[option]}"
        elif option in REFUSED:
            yield f"{where}: not allowed; {REFUSED[option]}; remove it"
        elif option not in PASSED_ON:
            guess = near(option, sorted({*PASSED_ON, *KEYS}))
            hint = f"did you mean {guess}?" if guess else "see the long options of `man sbatch`"
            yield f"{where}: sbatch has no option --{option}; {hint}"
        elif value is not True and (
            not isinstance(value, int | float | str)
            or value is False
            or value == ""
            or not str(value).isprintable()
        ):
            yield (
                f"{where}: expected true (a bare --{option}), one line of text or a number, got "
                f"{value!r}; remove the key to leave the option out"
            )
        elif option == "mem-per-gpu" and (slurm.mem or slurm.mem_per_cpu):
            other = "mem" if slurm.mem else "mem_per_cpu"
            yield f"{where}: expected one amount of memory, got slurm.{other} too; remove one"


def option_warnings(slurm: SlurmConfig) -> Iterator[str]:
    """What options mean for a run that outlives its jobs; one line each."""
    given = {option_name(key): value for key, value in slurm.additional_parameters.items()}
    if slurm.dependency and str(given.get("kill-on-invalid-dep")) not in ("yes", "True"):
        yield (
            "slurm.dependency knows one job, not the run that goes on in others, and if it can "
            "never be met the job waits for ever: use --after RUN, or set "
            "slurm.additional_parameters.kill-on-invalid-dep: yes"
        )
    if "deadline" in given:
        yield (
            "slurm.additional_parameters.deadline: Slurm removes the job when it cannot end before "
            "that, after a requeue as well: the run then stays stopped until `resume`"
        )
    if "hold" in given:
        yield "slurm.additional_parameters.hold: the job waits until `scontrol release` lets it go"
    if "time-min" in given:
        yield (
            "slurm.additional_parameters.time-min: Slurm may cut the time limit down to it to "
            "start earlier; the run then goes through the queue more often"
        )


def option_name(key: str) -> str:
    """``time_min``, ``--time-min`` and ``time-min`` are one option."""
    return key.removeprefix("--").replace("_", "-").lower()


SETUP = ("export PYTHONSAFEPATH=1",)
"""A ``train.py`` in the working directory must not shadow our packages in the job's Python."""


def sbatch_parameters(config: RunConfig, *, name: str, gpus_available: bool) -> dict[str, Any]:
    """Arguments for ``SlurmExecutor.update_parameters``; options that are not wanted are absent.

    ``time`` is in whole minutes, rounded up as sbatch itself does: submitit's time-limit handling
    needs an int. The pickled job runs once, as the batch script's process (``use_srun=False``);
    it starts the ranks itself.
    """
    slurm = config.slurm
    same = """
    partition account qos gres mem mem_per_cpu constraint nodelist exclude dependency mail_type
    mail_user comment
    """.split()  # noqa: SIM905 - a list of words reads better
    wanted = {
        "job_name": slurm.job_name or name,
        **job_shape(slurm),
        "time": -(-slurm.time // 60),
        "gpus_per_node": gpus_per_node(slurm, gpus_available=gpus_available),
        **{key: getattr(slurm, key) for key in same},
        "exclusive": slurm.exclusive or None,
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
    """The batch script as submitit will write it into ``folder`` (the run's submitit/)."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{job_python(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **parameters))
