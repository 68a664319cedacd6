"""Slurm's and submitit's own words: time limit, preemption, lost nodes, cancelled steps.

Sources: slurm's src/slurmd/slurmstepd/req.c (the ``*** JOB ... CANCELLED AT ... ***`` lines),
src/srun/libsrun, sacct(1) "JOB STATE CODES", submitit's core/job_environment.py.

What container runtimes say when a container does not start.

Sources: pyxis (pyxis_slurmstepd.c), enroot (src/storage_tools, src/runtime.sh), apptainer
(internal/pkg/runtime, internal/pkg/build), srun's and slurmstepd's own words.

How processes end: crashes in native code, exceptions of no specific class, exit codes.

Sources: CPython's faulthandler, torch's elastic/multiprocessing/{api,errors}, glibc's abort
messages, Open MPI's signal report, the kernel's ``segfault at`` lines.
"""

from __future__ import annotations

from submitrain.monitor.diagnose.model import FailureClass as F
from submitrain.monitor.diagnose.model import Trust, rule

_STATE = r"(?:state|status|jobstate|ended,.*?,)[\"'\s:=(]*"
_ROW = r"^(?:\w+:)?\s*\d+(?:_\d+)?(?:\.\w+)?[\s|].*[\s|]"
"""A line of sacct or squeue up to the state."""

SCHEDULER_RULES = (
    rule(F.TIME_LIMIT, Trust.KERNEL, "due to time limit", any_level=True),
    rule(F.TIME_LIMIT, Trust.KERNEL, "exceeded time limit|time limit exhausted", any_level=True),
    rule(F.TIME_LIMIT, Trust.KERNEL, "walltime", r"walltime.{0,40}exceed", any_level=True),
    rule(F.TIME_LIMIT, Trust.KERNEL, "term_runlimit", any_level=True),
    rule(F.PREEMPTED, Trust.KERNEL, "due to preemption|due to job requeue", any_level=True),
    rule(F.NODE_FAIL, Trust.KERNEL, "due to node fail", any_level=True),
    rule(F.HOST_OOM, Trust.KERNEL, "due to out of memory", any_level=True),
    rule(F.TIME_LIMIT, Trust.SCHEDULER, "timeout|timelimit", _STATE + r"timeout\b", any_level=True),
    rule(F.TIME_LIMIT, Trust.SCHEDULER, "timelimit", r"reason=timelimit", any_level=True),
    rule(F.TIME_LIMIT, Trust.SCHEDULER, "deadline", _STATE + r"deadline\b", any_level=True),
    rule(F.PREEMPTED, Trust.SCHEDULER, "preempted", _STATE + r"preempted", any_level=True),
    rule(F.NODE_FAIL, Trust.SCHEDULER, "node_fail|boot_fail", any_level=True),
    rule(F.HOST_OOM, Trust.SCHEDULER, "out_of_me", r"\bOUT_OF_ME(MORY|\+)", any_level=True),
    rule(
        F.TIME_LIMIT,
        Trust.SCHEDULER,
        "timeout",
        _ROW + r"TIMEOUT(?:[\s|]|$)",
        any_level=True,
        exact_case=True,
    ),
    rule(
        F.PREEMPTED,
        Trust.SCHEDULER,
        "preempted",
        _ROW + r"PREEMPTED(?:[\s|]|$)",
        any_level=True,
        exact_case=True,
    ),
    rule(
        F.NODE_FAIL,
        Trust.KERNEL,
        "node fail",
        r"(?:srun|salloc|sbatch|slurm\w*|launcher)\b.*node fail",
        any_level=True,
    ),
    rule(
        F.NODE_FAIL,
        Trust.KERNEL,
        "not respond|setting down|set to state down|missing from batch node",
        r"nodes? \S+ (?:is |are )?not respond|not responding, setting down|"
        r"set to state down|missing from batch node",
        any_level=True,
    ),
    rule(
        F.NODE_FAIL,
        Trust.CAUSE,
        "task launch|credential|fail",
        r"task launch for .* failed on node|(?:allocated|batch|compute) nodes? .{0,40}\bfailed\b",
    ),
    rule(F.NODE_FAIL, Trust.KERNEL, "nodenotready|node is not ready|node not ready"),
    rule(
        F.NODE_FAIL,
        Trust.CAUSE,
        "node|keep-alive",
        r"node with (?:node )?id:? .*marked dead|nodediederror|"
        r"node \S+ .{0,40}(?:went down|is down|"
        r"has (?:died|crashed|rebooted|failed)|unexpectedly rebooted)|"
        r"failed to send a keep-alive heartbeat|lost (?:contact|connection) (?:to|with) node",
    ),
    rule(F.NODE_FAIL, Trust.CAUSE, "kernel panic|machine check|mce: [hardware error]"),
    rule(
        F.TIME_LIMIT,
        Trust.CAUSE,
        "timed-out|timed out|time limit",
        r"job has timed out|this job is timed-out|not requeued because: timed-out|"
        r"time limit reached|(?:job|step|slurm).{0,30}hit (?:the )?time limit|"
        r"reached (?:the )?(?:wall|time).{0,12}limit",
        any_level=True,
    ),
    rule(
        F.PREEMPTED,
        Trust.CAUSE,
        "preempt",
        r"this job is preempted|(?:job|step|instance|vm|node|pod|worker|run|task)\b.{0,40}"
        r"\b(?:was|is|been|being|got|be) preempted|preempt(?:ing|ed) (?:job|pod|instance|step)|"
        r"preemption (?:signal|notice|event)? ?(?:received|detected|notice)|spotinterruption",
        any_level=True,
    ),
    rule(F.PREEMPTED, Trust.CAUSE, "interruption notice", any_level=True),
    rule(
        F.PREEMPTED,
        Trust.EXIT,
        "requeu",
        r"requeue?ing (?:slurm )?job|requeued slurm job|auto-?requeue signal|job requeued",
        any_level=True,
    ),
    rule(
        F.PREEMPTED,
        Trust.EXIT,
        "cancelled at|cancelled by",
        r"(?:job|step) .*cancelled at(?!.*due to (?:time|preempt|node|job req|out))|"
        + _STATE
        + r"cancelled by",
        any_level=True,
    ),
    rule(
        F.PREEMPTED,
        Trust.EXIT,
        "sigterm|signal 15|signal: 15|signal:15|got signal",
        r"(?:received|caught|got|bypassing|handling|by|via)\W+(?:signal\W*)?(?:sigterm|15\b)|"
        r"sigterm\W.{0,30}received|received \d+ death signal|signalexception.*sig(?:term|num)",
        any_level=True,
    ),
)


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


EXCEPTION_LINE = (
    r"^(?:\S{1,40}: )?(?:[a-z_][\w]*\.)*[A-Z][A-Za-z0-9_]*"
    r"(?:Error|Exception|Failure|Timeout|NotFound|Interrupted|Expired)(?::\s|\s*$)|^Exception: |"
    r"^AssertionError"
)
"""The last line of a traceback: ``package.SomeError: message``."""

PROCESS_RULES = (
    rule(
        F.SEGFAULT,
        Trust.CAUSE,
        "segmentation fault|sigsegv|segfault|general protection|signal 11|signal: 11",
        r"segmentation fault|sigsegv|\bsegfault (?:at [0-9a-f]+ ip|encountered|in\b)|"
        r"general protection (?:fault|ip)|"
        r"signal:? ?11\b",
    ),
    rule(
        F.SEGFAULT,
        Trust.CAUSE,
        "exitcode|exit code|exit status|return code|status 139",
        r"(?:exit_?code|exit code|exited with code|exit status|"
        r"return code)\s*[:=]?\s*(?:139|-11)\b",
    ),
    rule(
        F.SEGFAULT,
        Trust.CAUSE,
        "bus error|sigbus|illegal instruction|sigill|floating point exception|sigfpe",
        r"fatal.{0,20}bus error|bus error(?: \(core dumped\)|\s*$)|sigbus|"
        r"illegal instruction|sigill\b|floating point exception|sigfpe",
    ),
    rule(
        F.SEGFAULT,
        Trust.CAUSE,
        "double free|free():|malloc():|munmap_chunk|corrupted double-linked|stack smashing|"
        "heap corruption|corrupted size vs|malloc_consolidate|realloc():",
    ),
    rule(
        F.SEGFAULT,
        Trust.EXIT,
        "aborted|sigabrt|core dumped|fatal python error|terminate called|exitcode|signal 6",
        r"fatal python error: aborted|\baborted\b.{0,20}core dumped|\(core dumped\)|sigabrt|"
        r"exit_?code\s*[:=]\s*(?:134|-6)\b|terminate called after throwing|signal:? ?6\b",
    ),
    rule(F.PYTHON_EXCEPTION, Trust.EXIT, "childfailederror|processraisedexception"),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXCEPTION,
        "error|exception|failure|timeout|notfound|interrupted|expired",
        EXCEPTION_LINE,
        exact_case=True,
    ),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXCEPTION,
        "exc.|exceptions.|errors.|runtime.|dynamo.|inductor.|compiler.",
        r"^(?:[a-z_]\w*\.){2,}[A-Z][A-Za-z]+: ",
        exact_case=True,
    ),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXCEPTION,
        "device-side assert|illegal memory access|cuda error|cudnn error|cublas",
        r"device-side assert|illegal memory access|cuda error:|cudnn error|cublas_status_(?!alloc)",
    ),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXCEPTION,
        "error executing job|uncaught exception|unhandled exception|fatal error",
        r"error executing job with|(?:uncaught|unhandled) exception|^fatal error",
    ),
    rule(F.PYTHON_EXCEPTION, Trust.EXIT, "traceback (most recent call last)"),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXIT,
        "exitcode|exit code|exit status|return code|returned non-zero",
        r"(?:exit_?code|exit code|exited with (?:exit )?code|exit status|return code)\s*[:=]?\s*"
        r"(?:[1-9]\d?|1[01]\d|12[0-7])\b|returned non-zero exit status",
    ),
)
