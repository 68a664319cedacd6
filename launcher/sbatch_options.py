"""Every long option of sbatch, and what becomes of it here: a key, passed on, or refused. Pure.

Sources: sbatch(1) of Slurm 22.05 to 25.05; a test holds the tables to the installed sbatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from train.config.job import SlurmConfig
from train.config.schema import near

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
    "account": "account",
    "begin": "begin",
    "comment": "comment",
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_task",
    "dependency": "dependency",
    "exclude": "exclude",
    "exclusive": "exclusive",
    "gpus": "gpus_per_node",
    "gpus-per-node": "gpus_per_node",
    "gres": "gres",
    "job-name": "job_name",
    "mail-type": "mail_type",
    "mail-user": "mail_user",
    "mem": "mem",
    "mem-per-cpu": "mem_per_cpu",
    "no-requeue": "requeue",
    "nodelist": "nodelist",
    "nodefile": "nodelist",
    "nodes": "nodes",
    "ntasks": "ntasks_per_node",
    "ntasks-per-node": "ntasks_per_node",
    "partition": "partition",
    "qos": "qos",
    "requeue": "requeue",
    "reservation": "reservation",
    "signal": "signal_lead_s",
    "time": "time",
}
"""Options with a key of their own in the ``slurm`` section."""

_ENVIRONMENT = "the ranks' environment would be lost: use slurm.env"
_OTHERS_RIGHTS = "a run is submitted by whoever it belongs to"
_SUBMITIT_READS = "submitit reads sbatch's answer"
REFUSED = {
    "array": "one launch is one job, which supervises its run and requeues itself; for many runs "
    "use a sweep",
    "autocomplete": "it prints and submits nothing",
    "chdir": "start the run from that folder",
    "clusters": "the job is watched, requeued and resubmitted on the cluster of its controller; "
    "launch with that cluster's SLURM_CONF",
    "container": "use slurm.container_image: the job's own process stays outside",
    "container-id": "use slurm.container_image: the job's own process stays outside",
    "cpus-per-gpu": "use slurm.cpus_per_task: a rank has one GPU, so it is the same number",
    "error": "logs are in the run folder",
    "export": _ENVIRONMENT,
    "export-file": _ENVIRONMENT,
    "get-user-env": _ENVIRONMENT,
    "gid": _OTHERS_RIGHTS,
    "gpu-bind": "binding GPUs to tasks breaks NCCL's peer access",
    "gpus-per-task": "binding GPUs to tasks breaks NCCL's peer access: use slurm.gpus_per_node",
    "help": "it prints and submits nothing",
    "ignore-pbs": "the batch script is written by submitit and holds no #PBS line",
    "input": "ranks read no standard input",
    "no-kill": "it is set already where there is more than one node",
    "ntasks-per-gpu": "use slurm.ntasks_per_node",
    "open-mode": "it is append already, so that a requeue keeps the logs",
    "output": "logs are in the run folder",
    "parsable": _SUBMITIT_READS,
    "quiet": _SUBMITIT_READS,
    "stepmgr": "hung and broken steps are found and ended through slurmctld",
    "test-only": "use the plan command",
    "uid": _OTHERS_RIGHTS,
    "usage": "it prints and submits nothing",
    "verbose": _SUBMITIT_READS,
    "version": "it prints and submits nothing",
    "wait": "use --wait of the launch command: sbatch's own ends with the first job, the run goes "
    "on in others",
    "wrap": "submitrain writes the command",
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
        elif not _is_option_value(value):
            yield (
                f"{where}: expected true (a bare --{option}), one line of text or a number, got "
                f"{value!r}; remove the key to leave the option out"
            )
        elif option == "mem-per-gpu" and (slurm.mem or slurm.mem_per_cpu):
            other = "mem" if slurm.mem else "mem_per_cpu"
            yield f"{where}: expected one amount of memory, got slurm.{other} too; remove one"


def option_cautions(slurm: SlurmConfig) -> Iterator[str]:
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


def _is_option_value(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return isinstance(value, int | float | str) and str(value).isprintable() and str(value) != ""
