"""What Slurm, container runtimes and dying processes write.

Sources: slurm's src/slurmd/slurmstepd/req.c (the ``*** JOB ... CANCELLED AT ... ***`` lines),
src/srun/libsrun, sacct(1) "JOB STATE CODES", submitit's core/job_environment.py. pyxis
(pyxis_slurmstepd.c), enroot (src/storage_tools, src/runtime.sh), apptainer (internal/pkg/runtime,
internal/pkg/build). CPython's faulthandler, torch's elastic/multiprocessing/{api,errors}, glibc's
abort messages, Open MPI's signal report, the kernel's ``segfault at`` lines.
"""

from __future__ import annotations

from submitrain.monitor.diagnose.model import FailureClass as F
from submitrain.monitor.diagnose.patterns import Table, at_exit, cause, exception, kernel, scheduler

_STATE = r"(?:state|status|jobstate|ended,.*?,)[\"'\s:=(]*"
_ROW = r"^(?:\w+:)?\s*\d+(?:_\d+)?(?:\.\w+)?[\s|].*[\s|]"
"""A line of sacct or squeue up to the state."""

SCHEDULER_RULES: Table = {
    "due-to-time-limit": kernel(F.TIME_LIMIT, "due to time limit"),
    "exceeded-time-limit": kernel(F.TIME_LIMIT, "exceeded time limit|time limit exhausted"),
    "walltime": kernel(F.TIME_LIMIT, "walltime", r"walltime.{0,40}exceed"),
    "term-runlimit": kernel(F.TIME_LIMIT, "term_runlimit"),
    "due-to-preemption": kernel(F.PREEMPTED, "due to preemption|due to job requeue"),
    "due-to-node-fail": kernel(F.NODE_FAIL, "due to node fail"),
    "due-to-out-of-memory": kernel(F.HOST_OOM, "due to out of memory"),
    "state-timeout": scheduler(F.TIME_LIMIT, "timeout|timelimit", _STATE + r"timeout\b"),
    "reason-timelimit": scheduler(F.TIME_LIMIT, "timelimit", r"reason=timelimit"),
    "state-deadline": scheduler(F.TIME_LIMIT, "deadline", _STATE + r"deadline\b"),
    "state-preempted": scheduler(F.PREEMPTED, "preempted", _STATE + r"preempted"),
    "node-fail": scheduler(F.NODE_FAIL, "node_fail|boot_fail"),
    "sacct-out-of-memory": scheduler(F.HOST_OOM, "out_of_me", r"\bOUT_OF_ME(MORY|\+)"),
    "row-timeout": scheduler(
        F.TIME_LIMIT, "timeout", _ROW + r"TIMEOUT(?:[\s|]|$)", exact_case=True
    ),
    "row-preempted": scheduler(
        F.PREEMPTED, "preempted", _ROW + r"PREEMPTED(?:[\s|]|$)", exact_case=True
    ),
    "srun-node-fail": kernel(
        F.NODE_FAIL, "node fail", r"(?:srun|salloc|sbatch|slurm\w*|launcher)\b.*node fail"
    ),
    "node-not-responding": kernel(
        F.NODE_FAIL,
        "not respond|setting down|set to state down|missing from batch node",
        r"nodes? \S+ (?:is |are )?not respond|not responding, setting down|"
        r"set to state down|missing from batch node",
    ),
    "task-launch-failed": cause(
        F.NODE_FAIL,
        "task launch|credential|fail",
        r"task launch for .* failed on node|(?:allocated|batch|compute) nodes? .{0,40}\bfailed\b",
    ),
    "nodenotready": kernel(
        F.NODE_FAIL, "nodenotready|node is not ready|node not ready", any_level=False
    ),
    "node-down": cause(
        F.NODE_FAIL,
        "node|keep-alive",
        r"node with (?:node )?id:? .*marked dead|nodediederror|"
        r"node \S+ .{0,40}(?:went down|is down|"
        r"has (?:died|crashed|rebooted|failed)|unexpectedly rebooted)|"
        r"failed to send a keep-alive heartbeat|lost (?:contact|connection) (?:to|with) node",
    ),
    "kernel-panic": cause(F.NODE_FAIL, "kernel panic|machine check|mce: [hardware error]"),
    "timed-out": cause(
        F.TIME_LIMIT,
        "timed-out|timed out|time limit",
        r"job has timed out|this job is timed-out|not requeued because: timed-out|"
        r"time limit reached|(?:job|step|slurm).{0,30}hit (?:the )?time limit|"
        r"reached (?:the )?(?:wall|time).{0,12}limit",
        any_level=True,
    ),
    "preemption-notice": cause(
        F.PREEMPTED,
        "preempt",
        r"this job is preempted|(?:job|step|instance|vm|node|pod|worker|run|task)\b.{0,40}"
        r"\b(?:was|is|been|being|got|be) preempted|preempt(?:ing|ed) (?:job|pod|instance|step)|"
        r"preemption (?:signal|notice|event)? ?(?:received|detected|notice)|spotinterruption",
        any_level=True,
    ),
    "interruption-notice": cause(F.PREEMPTED, "interruption notice", any_level=True),
    "requeued": at_exit(
        F.PREEMPTED,
        "requeu",
        r"requeue?ing (?:slurm )?job|requeued slurm job|auto-?requeue signal|job requeued",
        any_level=True,
    ),
    "cancelled-at": at_exit(
        F.PREEMPTED,
        "cancelled at|cancelled by",
        r"(?:job|step) .*cancelled at(?!.*due to (?:time|preempt|node|job req|out))|"
        + _STATE
        + r"cancelled by",
        any_level=True,
    ),
    "sigterm": at_exit(
        F.PREEMPTED,
        "sigterm|signal 15|signal: 15|signal:15|got signal",
        r"(?:received|caught|got|bypassing|handling|by|via)\W+(?:signal\W*)?(?:sigterm|15\b)|"
        r"sigterm\W.{0,30}received|received \d+ death signal|signalexception.*sig(?:term|num)",
        any_level=True,
    ),
}


CONTAINER_RULES: Table = {
    "container-image-missing": cause(
        F.CONTAINER_ERROR,
        "could not open image|failed to retrieve path for|mount source|manifest unknown|"
        "executable file not found in $path|doesn't exist in container",
        r"fatal:.*(?:could not open image|failed to retrieve path for|mount source .* doesn't "
        r"exist|manifest unknown|executable file not found|doesn't exist in container)",
        any_level=True,
    ),
    "container-runtime-missing": cause(
        F.CONTAINER_ERROR,
        "execve",
        r"execve\(\)?:\s*(?:\S*/)?(?:apptainer|singularity|enroot)\b",
        any_level=True,
    ),
    "unrecognized-option": cause(
        F.CONTAINER_ERROR,
        "unrecognized option",
        r"srun: unrecognized option .--container-",
        any_level=True,
    ),
    "enroot-mount-failed-to-mount": cause(
        F.CONTAINER_ERROR,
        "enroot-mount: failed to mount|no such file or directory|404 not found|"
        "invalid image format",
        r"(?:pyxis|enroot)\S*:?.{0,160}(?:enroot-mount: failed to mount|no such file or directory|"
        r"404 not found|invalid image format)",
        any_level=True,
    ),
    "container-creation-failed": exception(
        F.CONTAINER_ERROR,
        "container creation failed|couldn't start container|failed to import docker image|enroot|"
        "pyxis: child|while making image from oci registry",
        r"fatal:.*container creation failed|couldn't start container|failed to import docker image|"
        r"enroot.{0,40}\[error\]|pyxis: child \d+ failed|"
        r"fatal:.*while making image from oci registry",
        any_level=True,
    ),
}


EXCEPTION_LINE = (
    r"^(?:\S{1,40}: )?(?:[a-z_][\w]*\.)*[A-Z][A-Za-z0-9_]*"
    r"(?:Error|Exception|Failure|Timeout|NotFound|Interrupted|Expired)(?::\s|\s*$)|^Exception: |"
    r"^AssertionError"
)
"""The last line of a traceback: ``package.SomeError: message``."""

PROCESS_RULES: Table = {
    "segmentation-fault": cause(
        F.SEGFAULT,
        "segmentation fault|sigsegv|segfault|general protection|signal 11|signal: 11",
        r"segmentation fault|sigsegv|\bsegfault (?:at [0-9a-f]+ ip|encountered|in\b)|"
        r"general protection (?:fault|ip)|"
        r"signal:? ?11\b",
    ),
    "exit-139": cause(
        F.SEGFAULT,
        "exitcode|exit code|exit status|return code|status 139",
        r"(?:exit_?code|exit code|exited with code|exit status|"
        r"return code)\s*[:=]?\s*(?:139|-11)\b",
    ),
    "bus-error": cause(
        F.SEGFAULT,
        "bus error|sigbus|illegal instruction|sigill|floating point exception|sigfpe",
        r"fatal.{0,20}bus error|bus error(?: \(core dumped\)|\s*$)|sigbus|"
        r"illegal instruction|sigill\b|floating point exception|sigfpe",
    ),
    "double-free": cause(
        F.SEGFAULT,
        "double free|free():|malloc():|munmap_chunk|corrupted double-linked|stack smashing|"
        "heap corruption|corrupted size vs|malloc_consolidate|realloc():",
    ),
    "aborted-core-dumped": at_exit(
        F.SEGFAULT,
        "aborted|sigabrt|core dumped|fatal python error|terminate called|exitcode|signal 6",
        r"fatal python error: aborted|\baborted\b.{0,20}core dumped|\(core dumped\)|sigabrt|"
        r"exit_?code\s*[:=]\s*(?:134|-6)\b|terminate called after throwing|signal:? ?6\b",
    ),
    "childfailederror": at_exit(F.PYTHON_EXCEPTION, "childfailederror|processraisedexception"),
    "exception-line": exception(
        F.PYTHON_EXCEPTION,
        "error|exception|failure|timeout|notfound|interrupted|expired",
        EXCEPTION_LINE,
        exact_case=True,
    ),
    "qualified-exception": exception(
        F.PYTHON_EXCEPTION,
        "exc.|exceptions.|errors.|runtime.|dynamo.|inductor.|compiler.",
        r"^(?:[a-z_]\w*\.){2,}[A-Z][A-Za-z]+: ",
        exact_case=True,
    ),
    "device-side-assert": exception(
        F.PYTHON_EXCEPTION,
        "device-side assert|illegal memory access|cuda error|cudnn error|cublas",
        r"device-side assert|illegal memory access|cuda error:|cudnn error|cublas_status_(?!alloc)",
    ),
    "error-executing-job": exception(
        F.PYTHON_EXCEPTION,
        "error executing job|uncaught exception|unhandled exception|fatal error",
        r"error executing job with|(?:uncaught|unhandled) exception|^fatal error",
    ),
    "traceback-most-recent-call-last": at_exit(
        F.PYTHON_EXCEPTION, "traceback (most recent call last)"
    ),
    "exit-code": at_exit(
        F.PYTHON_EXCEPTION,
        "exitcode|exit code|exit status|return code|returned non-zero",
        r"(?:exit_?code|exit code|exited with (?:exit )?code|exit status|return code)\s*[:=]?\s*"
        r"(?:[1-9]\d?|1[01]\d|12[0-7])\b|returned non-zero exit status",
    ),
}
