"""The fault matrix: what is done to which run, and what must come of it."""

from __future__ import annotations

from submitrain.train.faults import FaultKind, Moment
from tests.faults.rows import GOES_ON, Course, Expected, Inside, Outside, Row

WHO = r"rank {rank} \({node}\)"


def died(*says: str) -> Expected:
    """A rank is gone: others take its place within the job."""
    return Expected("rank_died", "restart", (WHO, *says))


HUNG = Expected("hung", "restart", (WHO,))
HANG_BUDGETS = {
    "resilience": {
        "hang": {
            "silence_s": 10,
            "first_step_s": 30,
            "step_s": 12,
            "validate_s": 12,
            "save_s": 12,
            "export_s": 12,
        }
    }
}
"""Short, so that hangs are found soon; slow phases and stopped files must not be taken for one."""

DEATHS = Course(
    "deaths",
    "bare",
    (
        Row("kill-at-start", Inside(Moment.START, FaultKind.KILL, 1), died("SIGKILL")),
        Row("abort-in-build-again", Inside(Moment.BUILD, FaultKind.ABORT), died("SIGABRT")),
        Row(
            "requeued-between-attempts",
            Outside("requeue", between=True),
            Expected("requeued", "leave", loses="nothing"),
        ),
        Row("segv-in-second-step", Inside(Moment.STEP, FaultKind.SEGV, 1, 2), died("SIGSEGV")),
        Row(
            "kill-in-accumulation",
            Inside(Moment.ACCUMULATION, FaultKind.KILL, 0, 3),
            died("SIGKILL"),
        ),
        Row("kill-in-save", Inside(Moment.SAVE, FaultKind.KILL, 1, 4), died("SIGKILL")),
        Row("kill-before-rename", Inside(Moment.PUBLISH, FaultKind.KILL, 0, 8), died("SIGKILL")),
        Row("kill-after-rename", Inside(Moment.LATEST, FaultKind.KILL, 0, 12), died("SIGKILL")),
        Row(
            "kill-before-optimizer",
            Inside(Moment.OPTIMIZER, FaultKind.KILL, 1, 14),
            died("SIGKILL"),
        ),
        Row(
            "exit0-in-validation", Inside(Moment.VALIDATE, FaultKind.EXIT0, 1, 15), died("without")
        ),
        Row(
            "abort-at-epoch-end", Inside(Moment.EPOCH_END, FaultKind.ABORT, 0, 16), died("SIGABRT")
        ),
        Row("kill-in-first-step", Inside(Moment.FIRST_STEP, FaultKind.KILL, 1), died("SIGKILL")),
        Row("loader-killed", Inside(Moment.STEP, FaultKind.WORKER_KILL, 0, 34), died("(?i)worker")),
        Row("kill-in-rendezvous", Inside(Moment.RENDEZVOUS, FaultKind.KILL), died("SIGKILL")),
        Row(
            "checkpoint-damaged",
            Inside(Moment.STEP, FaultKind.CORRUPT, 1, 39),
            Expected("rank_died", "restart", (WHO, "SIGKILL"), loses="two intervals"),
        ),
        Row(
            "device-out-of-memory",
            Inside(Moment.STEP, FaultKind.DEVICE_MEMORY, 0, 41),
            Expected("out_of_memory", "restart", (WHO,)),
        ),
        Row(
            "host-out-of-memory",
            Inside(Moment.STEP, FaultKind.MEMORY, 1, 43),
            Expected("host_out_of_memory", "restart", (WHO,)),
        ),
        Row(
            "term-to-one-rank",
            Inside(Moment.STEP, FaultKind.TERM, 1, 46),
            Expected("terminated", "restart", (WHO, "SIGTERM"), loses="nothing"),
        ),
        Row(
            "exception-of-the-program",
            Inside(Moment.STEP, FaultKind.EXCEPTION, 1, 50),
            Expected("program_error", "stop", (WHO, "RuntimeError", r"\.py:\d+")),
        ),
        Row("kill-in-export", Inside(Moment.EXPORT, FaultKind.KILL, 1), died("SIGKILL")),
        Row(
            "kill-at-exit",
            Inside(Moment.EXIT, FaultKind.KILL, 1),
            Expected("finished", "done", loses="nothing"),
        ),
    ),
    step_s=0.02,
)

OUTSIDE = Course(
    "outside",
    "bare",
    (
        Row(
            "preempted-without-notice",
            Outside("preempt", step=3),
            Expected("preempted", "leave", loses="nothing"),
        ),
        Row(
            "requeued-in-save",
            Outside("requeue", within=Inside(Moment.SAVE, FaultKind.SLOW, 0, 8, seconds=3)),
            Expected("requeued", "leave", loses="nothing"),
        ),
        Row(
            "scancel-in-save",
            Outside("scancel", within=Inside(Moment.SAVE, FaultKind.SLOW, 1, 12, seconds=3)),
            Expected("cancelled", "stop", ("scancel",), loses="nothing"),
        ),
        Row("disk-full", Outside("fill_disk", step=15), GOES_ON),
        Row(
            "supervisor-killed",
            Outside("kill_supervisor", step=21),
            Expected("lost", "leave", ("supervisor",)),
        ),
        Row(
            "rank-dies-while-controller-is-away",
            Outside("kill_rank_without_controller", step=27, seconds=10),
            died("SIGKILL"),
        ),
        Row(
            "node-lost",
            Outside("lose_last_node", step=36),
            Expected("node_lost", "restart", ("{node}",)),
        ),
    ),
    config={"slurm": {"spare_nodes": 1}},
    small_disk=True,
)

PATIENCE = Course(
    "patience",
    "bare",
    (
        Row(
            "controller-away-for-a-minute", Outside("stop_controller", step=6, seconds=60), GOES_ON
        ),
        Row("first-node-lost", Outside("lose_first_node", step=14), Expected("lost", "leave")),
        Row(
            "node-cut-off-and-back",
            Outside("cut_off_last_node", step=22),
            Expected("node_lost", "requeue", ("{node}",)),
        ),
    ),
    by_command=True,
)

HANGS = Course(
    "hangs",
    "bare",
    (
        Row("slow-first-step", Inside(Moment.FIRST_STEP, FaultKind.SLOW, 1, seconds=6), GOES_ON),
        Row("slow-save", Inside(Moment.SAVE, FaultKind.SLOW, 0, 4, seconds=6), GOES_ON),
        Row("slow-validation", Inside(Moment.VALIDATE, FaultKind.SLOW, 1, 5, seconds=6), GOES_ON),
        Row("files-stopped", Outside("stop_files", step=9, seconds=15), GOES_ON),
        Row("hang-in-step", Inside(Moment.STEP, FaultKind.HANG, 1, 18), HUNG),
        Row(
            "stopped-in-accumulation",
            Inside(Moment.ACCUMULATION, FaultKind.STOP, 0, 22),
            HUNG,
        ),
        Row(
            "hang-without-heartbeat-in-save",
            Inside(Moment.SAVE, FaultKind.HANG_GIL, 1, 28),
            HUNG,
        ),
        Row("hang-in-validation", Inside(Moment.VALIDATE, FaultKind.HANG, 0, 35), HUNG),
        Row("stopped-in-export", Inside(Moment.EXPORT, FaultKind.STOP, 1), HUNG),
    ),
    config=HANG_BUDGETS,
    step_s=0.05,
)

NUMBERS = Course(
    "numbers",
    "bare",
    (
        Row("nan-in-step", Inside(Moment.STEP, FaultKind.NAN, 1, 5), GOES_ON),
        Row("kill-after-a-left-out-step", Inside(Moment.STEP, FaultKind.KILL, 0, 11), died()),
    ),
    steps=20,
    step_s=0.05,
)

LIMIT = Course(
    "limit",
    "bare",
    (
        Row(
            "time-limit",
            Outside("nothing", step=1),
            Expected("time_limit", "requeue", loses="nothing"),
        ),
    ),
    config={"slurm": {"time": "1m"}, "resilience": {"stop_lead_s": 40}},
    step_s=0.4,
    again=("time_limit",),
    by_command=True,
)

NOTICE = Course(
    "notice",
    "accounting",
    (
        Row("database-away", Outside("stop_database", step=3, seconds=10), GOES_ON),
        Row(
            "preempted-with-notice",
            Outside("preempt", within=Inside(Moment.ACCUMULATION, FaultKind.SLOW, 0, 9, seconds=2)),
            Expected("preempted", "requeue", loses="nothing"),
        ),
        Row("sacct-missing", Outside("look_for_sacct", step=14), GOES_ON),
        Row(
            "rank-dies-while-database-is-away",
            Outside("kill_rank_without_database", step=18, seconds=10),
            died("SIGKILL"),
        ),
    ),
    hidden=("sacct",),
)

ALL = (DEATHS, OUTSIDE, HANGS, NUMBERS, PATIENCE, LIMIT, NOTICE)
COURSES = {course.name: course for course in ALL}
