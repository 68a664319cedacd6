"""Slurm's and submitit's own words: time limit, preemption, lost nodes, cancelled steps.

Sources: slurm's src/slurmd/slurmstepd/req.c (the ``*** JOB ... CANCELLED AT ... ***`` lines),
src/srun/libsrun, sacct(1) "JOB STATE CODES", submitit's core/job_environment.py.
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

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
