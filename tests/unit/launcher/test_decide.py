"""The table of outcomes: what follows from which evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.attempts import Action, Attempt, Cause, Decision
from submitrain.config.job import ResilienceConfig, SlurmConfig
from submitrain.launcher.plan.deadlines import stop_lead_s
from submitrain.launcher.supervisor.decide import (
    after_failed_rollback,
    after_lost_supervisors,
    after_refused_requeue,
    attempts_without_progress,
    decide,
)
from submitrain.launcher.supervisor.evidence import (
    AttemptEvidence,
    RankExit,
    RankFailure,
    StopCause,
)
from submitrain.launcher.supervisor.placement import NodeRule, NodeState
from submitrain.monitor.diagnose import diagnose_text
from submitrain.rollbacks import Rollback
from submitrain.slurm.jobs import UNKNOWN, JobInfo

ALL = frozenset({0, 1})
LIMITS = ResilienceConfig()
RUNNING = JobInfo("7", "RUNNING")


def evidence(**changes: Any) -> AttemptEvidence:
    """An attempt of two ranks that advanced from step 0 to step 10."""
    usual: dict[str, Any] = {"first_step": 0, "last_step": 10, "started": ALL, "job": RUNNING}
    return AttemptEvidence(attempt=1, world_size=2, **{**usual, **changes})


def failure(exception: str = "builtins.ValueError", **changes: Any) -> RankFailure:
    usual = {"rank": 1, "message": "bad", "where": "a.py:3", "step": 10, "phase": "step"}
    values: dict[str, Any] = {**usual, "victim": False, "t": 1.0, **changes}
    return RankFailure(exception=exception, **values)


def outcome(found: AttemptEvidence, history: tuple[Attempt, ...] = ()) -> tuple[Cause, Action]:
    decision = decide(found, history, None, LIMITS)
    return decision.cause, decision.action


def record(cause: Cause, action: Action, first: int | None, last: int | None) -> Attempt:
    return Attempt(1, "7", cause, action, first, last)


def test_finished_needs_the_word_of_every_rank() -> None:
    assert outcome(evidence(finished=ALL)) == (Cause.FINISHED, Action.DONE)


def test_exit_codes_of_zero_without_the_ranks_word_are_no_success() -> None:
    exits = (RankExit(0, 0), RankExit(1, 0))
    found = evidence(finished=frozenset({0}), exits=exits, launcher_code=0)
    assert outcome(found) == (Cause.RANK_DIED, Action.RESTART)


def test_all_finished_stays_finished_whatever_happened_afterwards() -> None:
    found = evidence(finished=ALL, terminated=True, exits=(RankExit(1, -6),), launcher_code=137)
    assert outcome(found) == (Cause.FINISHED, Action.DONE)


def test_a_stop_for_the_time_limit_goes_back_into_the_queue() -> None:
    found = evidence(stopped=ALL, stop_asked=StopCause.TIME_LIMIT)
    assert outcome(found) == (Cause.TIME_LIMIT, Action.REQUEUE)


def test_ranks_that_slurm_warned_directly_stopped_for_the_time_limit() -> None:
    assert outcome(evidence(stopped=ALL)) == (Cause.TIME_LIMIT, Action.REQUEUE)


def test_ranks_that_did_not_stop_in_time_are_requeued_all_the_same() -> None:
    found = evidence(stop_asked=StopCause.TIME_LIMIT, exits=(RankExit(0, -9, ours=True),))
    assert outcome(found) == (Cause.TIME_LIMIT, Action.REQUEUE)


def test_a_preemption_with_notice_is_requeued_by_us() -> None:
    found = evidence(stopped=ALL, job=replace(RUNNING, preempted_at=99.0))
    assert outcome(found) == (Cause.PREEMPTED, Action.REQUEUE)


def test_a_preemption_without_notice_is_left_to_slurm() -> None:
    job = JobInfo("7", "COMPLETING", restarts=1)
    found = evidence(stopped=ALL, terminated=True, job=job, ended_for="PREEMPTION")
    assert outcome(found) == (Cause.PREEMPTED, Action.LEAVE)


def test_a_preemption_that_cancels_is_not_taken_for_a_scancel() -> None:
    job = JobInfo("7", "COMPLETING", preempted_at=99.0)
    found = evidence(stopped=ALL, terminated=True, job=job)
    assert outcome(found) == (Cause.PREEMPTED, Action.RESUBMIT)


def test_an_administrators_requeue_is_left_to_slurm() -> None:
    job = JobInfo("7", "COMPLETING", restarts=1)
    found = evidence(stopped=ALL, terminated=True, job=job, ended_for="JOB REQUEUE")
    assert outcome(found) == (Cause.REQUEUED, Action.LEAVE)


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_scancel_is_final(state: str) -> None:
    found = evidence(stopped=ALL, terminated=True, job=JobInfo("7", state))
    assert outcome(found) == (Cause.CANCELLED, Action.STOP)


def test_a_restart_count_of_earlier_requeues_does_not_hide_a_scancel() -> None:
    job = JobInfo("7", "COMPLETING", restarts=3)
    found = evidence(stopped=ALL, terminated=True, job=job, restarts_before=3)
    assert outcome(found) == (Cause.CANCELLED, Action.STOP)


def test_term_with_a_scheduler_that_does_not_answer_is_not_called_a_cancellation() -> None:
    found = evidence(stopped=ALL, terminated=True, job=None)
    assert outcome(found) == (Cause.TERMINATED, Action.STOP)
    assert decide(found, (), None, LIMITS).state == "stopped"


def test_term_while_the_job_goes_on_running_stops_the_run() -> None:
    assert outcome(evidence(stopped=ALL, terminated=True)) == (Cause.TERMINATED, Action.STOP)


def test_a_time_limit_that_struck_is_named() -> None:
    job = JobInfo("7", "COMPLETING", reason="TimeLimit")
    found = evidence(terminated=True, job=job)
    assert outcome(found) == (Cause.TIME_LIMIT, Action.RESUBMIT)


def test_a_cancel_request_outweighs_everything_but_the_finish() -> None:
    found = evidence(stopped=ALL, cancel_requested=True, job=JobInfo("7", "PENDING", restarts=1))
    assert outcome(found) == (Cause.CANCELLED, Action.STOP)


def test_a_rank_killed_by_a_signal_is_restarted_in_place() -> None:
    found = evidence(exits=(RankExit(1, -9, "node2"), RankExit(0, 1, ours=True)))
    assert outcome(found) == (Cause.RANK_DIED, Action.RESTART)
    assert "rank 1 (node2) was killed by SIGKILL" in decide(found, (), None, LIMITS).explanation


def test_the_silent_dead_rank_is_named_and_not_its_victim() -> None:
    found = evidence(
        failures=(failure("RuntimeError", rank=0, victim=True),),
        exits=(RankExit(0, 1), RankExit(1, -11, "node2")),
    )
    assert "rank 1 (node2) was killed by SIGSEGV" in decide(found, (), None, LIMITS).explanation


def test_victims_alone_mean_that_the_network_failed() -> None:
    failures = (failure("RuntimeError", victim=True), failure("RuntimeError", rank=0, victim=True))
    found = evidence(failures=failures, exits=(RankExit(1, 1), RankExit(0, 1)))
    assert outcome(found) == (Cause.RANK_DIED, Action.RESTART)


def test_an_exception_of_the_program_stops_at_once_and_names_rank_file_and_line() -> None:
    found = evidence(failures=(failure(host="node2"),), exits=(RankExit(1, 1),))
    assert outcome(found) == (Cause.PROGRAM_ERROR, Action.STOP)
    explanation = decide(found, (), None, LIMITS).explanation
    assert (
        explanation
        == "rank 1 (node2) raised builtins.ValueError at step 10 in phase step (a.py:3): bad"
    )


def test_the_first_failure_that_is_no_victim_is_the_cause() -> None:
    victim = failure("RuntimeError", rank=0, victim=True, t=0.5)
    assert outcome(evidence(failures=(victim, failure(t=0.9)))) == (
        Cause.PROGRAM_ERROR,
        Action.STOP,
    )


@pytest.mark.parametrize(
    ("exception", "cause"),
    [
        ("submitrain.errors.ConfigError", Cause.USER_ERROR),
        ("submitrain.errors.DataError", Cause.USER_ERROR),
        ("submitrain.errors.CheckpointError", Cause.CHECKPOINT_ERROR),
        ("submitrain.errors.NotFiniteError", Cause.NOT_FINITE),
        ("submitrain.errors.LossSpikeError", Cause.LOSS_SPIKE),
        ("submitrain.errors.FencedError", Cause.FENCED),
    ],
)
def test_our_own_exceptions_have_causes_of_their_own(exception: str, cause: Cause) -> None:
    assert outcome(evidence(failures=(failure(exception),))) == (cause, Action.STOP)


BAD = failure("submitrain.errors.NotFiniteError", message="step 8: loss nan", step=7)
BACK = evidence(failures=(BAD,), rollback=Rollback(1, "not_finite", 7, 8, ((48, 64),), (5, 6)))


def test_too_many_bad_steps_go_back_and_name_what_is_left_out() -> None:
    assert outcome(BACK) == (Cause.NOT_FINITE, Action.RESTART)
    explanation = decide(BACK, (), None, LIMITS).explanation
    assert explanation.endswith("going back to before step 7, without the positions [48, 64)")


def test_rollbacks_have_a_budget_and_then_words_of_advice() -> None:
    before = record(Cause.NOT_FINITE, Action.RESTART, 5, 7)
    assert outcome(BACK, (before,)) == (Cause.NOT_FINITE, Action.RESTART)
    assert outcome(BACK, (before, before)) == (Cause.NOT_FINITE, Action.STOP)
    explanation = decide(BACK, (before, before), None, LIMITS).explanation
    assert "gone back 2 times already, resilience.max_rollbacks (2) is spent" in explanation
    assert "Look at the samples 5, 6 (step 8). Lower optimizer.lr" in explanation
    assert "going back to before" not in explanation


def test_rollbacks_are_no_attempts_without_progress() -> None:
    limits = ResilienceConfig(max_rollbacks=9)
    history = [record(Cause.NOT_FINITE, Action.RESTART, 5, 7)] * 5
    assert decide(replace(BACK, last_step=7), history, None, limits).action is Action.RESTART


def test_a_rollback_close_to_the_limit_is_requeued() -> None:
    found = replace(BACK, remaining_s=30.0, lead_s=60.0)
    assert outcome(found) == (Cause.NOT_FINITE, Action.REQUEUE)


def test_only_a_decision_to_go_back_has_a_rollback_to_be_written_down() -> None:
    assert decide(BACK, (), None, LIMITS).rollback == BACK.rollback
    requeued = decide(replace(BACK, remaining_s=30.0, lead_s=60.0), (), None, LIMITS)
    assert requeued.rollback == BACK.rollback
    for found in (replace(BACK, cancel_requested=True), replace(BACK, finished=ALL)):
        assert decide(found, (), None, LIMITS).rollback is None
    assert decide(BACK, (), None, ResilienceConfig(max_rollbacks=0)).rollback is None


def test_a_rollback_that_cannot_be_written_down_does_not_happen() -> None:
    decision = Decision(Cause.NOT_FINITE, Action.RESTART, "bad", rollback=BACK.rollback)
    found = after_failed_rollback(decision, "skips.jsonl cannot be written: full")
    assert (found.action, found.rollback) == (Action.STOP, None)
    assert found.explanation == "bad; skips.jsonl cannot be written: full"


@pytest.mark.parametrize("action", [Action.RESTART, Action.REQUEUE, Action.RESUBMIT])
def test_a_rollback_counts_however_the_run_went_on(action: Action) -> None:
    history = [record(Cause.NOT_FINITE, action, 5, 7)] * LIMITS.max_rollbacks
    assert decide(BACK, history, None, LIMITS).action is Action.STOP


LEAVES = Decision(Cause.TIME_LIMIT, Action.REQUEUE, "time", exclude=("n2",), blamed={"n2": "x"})


@pytest.mark.parametrize(
    ("refused", "resubmit", "expected"),
    [
        (Decision(Cause.CANCELLED, Action.STOP, "scancel"), True, (Cause.CANCELLED, Action.STOP)),
        (Decision(Cause.HUNG, Action.RESUBMIT, "no"), True, (Cause.TIME_LIMIT, Action.RESUBMIT)),
        (Decision(Cause.HUNG, Action.RESUBMIT, "no"), False, (Cause.TIME_LIMIT, Action.STOP)),
        (Decision(Cause.HUNG, Action.STOP, "no"), True, (Cause.TIME_LIMIT, Action.STOP)),
    ],
)
def test_a_job_that_slurm_does_not_take_back_goes_on_in_a_new_one_or_ends(
    refused: Decision, resubmit: bool, expected: tuple[Cause, Action]
) -> None:
    found = after_refused_requeue(LEAVES, refused, ResilienceConfig(resubmit=resubmit))
    assert (found.cause, found.action) == expected
    assert (found.exclude, found.blamed) == (LEAVES.exclude, LEAVES.blamed)
    assert refused.explanation in found.explanation


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: all CUDA-capable devices are busy or unavailable",
        "NCCL error: unhandled system error",
        "[Errno 116] Stale file handle: '/shared/x'",
        "[Errno 5] Input/output error",
        "[Errno 107] Transport endpoint is not connected",
        "DataLoader worker (pid 12) is killed by signal: Killed.",
        "HTTPSConnectionPool(host='hub'): Max retries exceeded with url: /x",
    ],
)
def test_an_exception_that_blames_the_host_is_restarted(message: str) -> None:
    found = evidence(failures=(failure("RuntimeError", message=message),))
    assert outcome(found) == (Cause.RANK_DIED, Action.RESTART)


@pytest.mark.parametrize(
    ("exception", "message"),
    [
        ("PermissionError", "[Errno 13] Permission denied: '/shared/x'"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: '/shared/x'"),
        ("OSError", "[Errno 28] No space left on device"),
        ("ModuleNotFoundError", "No module named 'flash_attn'"),
        ("ValueError", "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback"),
        ("AssertionError", "no NCCL here"),
    ],
)
def test_an_exception_that_comes_again_stops_at_once(exception: str, message: str) -> None:
    found = evidence(failures=(failure(exception, message=message),))
    assert outcome(found) == (Cause.PROGRAM_ERROR, Action.STOP)


HOST_MEMORY = {
    "slurmstepd": "slurmstepd-node2: error: Detected 1 oom_kill event in StepId=12.0. Some of the "
    "step tasks have been OOM Killed.",
    "over limit": "slurmstepd: error: StepId=12.0 exceeded memory limit (2306867 > 2097152), "
    "being killed",
    "kernel": "Out of memory: Killed process 4321 (python) total-vm:9999999kB, anon-rss:888888kB",
}


@pytest.mark.parametrize("line", HOST_MEMORY.values(), ids=HOST_MEMORY)
def test_a_rank_that_the_kernel_killed_for_memory_is_tried_once_more(line: str) -> None:
    killed = (RankExit(1, -9, host="node2"), RankExit(0, 1))
    victim = failure("RuntimeError", rank=0, message="Connection closed by peer", victim=True)
    found = evidence(exits=killed, failures=(victim,), diagnosis=diagnose_text(line))
    assert outcome(found) == (Cause.HOST_OUT_OF_MEMORY, Action.RESTART)
    before = record(Cause.HOST_OUT_OF_MEMORY, Action.RESTART, 0, 10)
    stop = decide(found, (before,), None, LIMITS)
    assert (stop.cause, stop.action) == (Cause.HOST_OUT_OF_MEMORY, Action.STOP)
    assert "slurm.mem" in stop.explanation


def test_a_kill_without_the_kernels_word_is_a_dead_rank() -> None:
    found = evidence(exits=(RankExit(1, -9),), diagnosis=diagnose_text("Killed"))
    assert outcome(found) == (Cause.RANK_DIED, Action.RESTART)


def test_a_memory_error_of_python_is_the_hosts_memory() -> None:
    found = evidence(failures=(failure("builtins.MemoryError", message=""),))
    assert outcome(found) == (Cause.HOST_OUT_OF_MEMORY, Action.RESTART)


def test_memory_that_runs_out_once_is_tried_again() -> None:
    found = evidence(failures=(failure("torch.OutOfMemoryError"),))
    assert outcome(found) == (Cause.OUT_OF_MEMORY, Action.RESTART)


def test_memory_that_runs_out_twice_at_one_step_stops() -> None:
    found = evidence(failures=(failure("torch.OutOfMemoryError"),), last_step=10)
    before = record(Cause.OUT_OF_MEMORY, Action.RESTART, 0, 10)
    assert outcome(found, (before,)) == (Cause.OUT_OF_MEMORY, Action.STOP)


def test_memory_that_runs_out_at_another_step_is_tried_again() -> None:
    found = evidence(failures=(failure("torch.OutOfMemoryError"),), last_step=12)
    before = record(Cause.OUT_OF_MEMORY, Action.RESTART, 0, 10)
    assert outcome(found, (before,)) == (Cause.OUT_OF_MEMORY, Action.RESTART)


def test_ranks_that_never_started_are_a_failed_launch() -> None:
    found = evidence(
        started=frozenset(),
        launcher_code=0,
        launcher_error="srun: task launch failed",
        last_step=None,
    )
    assert outcome(found) == (Cause.LAUNCH_FAILED, Action.RESTART)
    assert "srun: task launch failed" in decide(found, (), None, LIMITS).explanation


NO_IMAGE = "FATAL:   could not open image /a.sif: failed to retrieve path for /a.sif: lstat"
NO_REGISTRY = "slurmstepd: error: pyxis: failed to import docker image"
NO_PLUGIN = "srun: unrecognized option '--container-image=a'"
ONE, BOTH = (RankExit(1, 255, "node2"),), (RankExit(0, 255, "node1"), RankExit(1, 255, "node2"))


@pytest.mark.parametrize(
    ("words", "exits", "expected"),
    [
        (NO_IMAGE, BOTH, (Cause.CONTAINER_ERROR, Action.STOP)),
        (NO_PLUGIN, (), (Cause.CONTAINER_ERROR, Action.STOP)),
        (NO_IMAGE, ONE, (Cause.CONTAINER_ERROR, Action.RESTART)),
        (NO_REGISTRY, BOTH, (Cause.LAUNCH_FAILED, Action.RESTART)),
    ],
)
def test_a_container_that_lacks_something_everywhere_stops_the_run(
    words: str, exits: tuple[RankExit, ...], expected: tuple[Cause, Action]
) -> None:
    """On one node others may do, and a registry may answer later."""
    found = evidence(
        started=frozenset({0} - {one.rank for one in exits}) if exits else frozenset(),
        exits=exits,
        last_step=None,
        diagnosis=diagnose_text(words),
    )
    assert outcome(found) == expected
    if expected[0] is Cause.CONTAINER_ERROR:
        assert (
            "available under these names on every node"
            in decide(found, (), None, LIMITS).explanation
        )


KILLED = evidence(exits=(RankExit(1, -9),))


def test_three_attempts_without_a_new_step_are_a_crash_loop() -> None:
    history = tuple(record(Cause.RANK_DIED, Action.RESTART, 0, 0) for _ in range(2))
    found = replace(KILLED, last_step=0)
    assert outcome(found, history) == (Cause.CRASH_LOOP, Action.STOP)


def test_a_step_that_an_earlier_attempt_had_reached_is_no_progress() -> None:
    again = record(Cause.RANK_DIED, Action.RESTART, 5, 10)
    history = (record(Cause.RANK_DIED, Action.RESTART, 0, 10), again, again)
    found = replace(KILLED, first_step=5, last_step=10)
    assert outcome(found, history) == (Cause.CRASH_LOOP, Action.STOP)


def test_advancing_attempts_are_no_crash_loop() -> None:
    history = tuple(record(Cause.RANK_DIED, Action.RESTART, n, n + 1) for n in range(6))
    found = replace(KILLED, first_step=6, last_step=7)
    assert outcome(found, history) == (Cause.RANK_DIED, Action.RESTART)


def test_preemptions_prove_nothing_about_progress() -> None:
    history = tuple(record(Cause.PREEMPTED, Action.LEAVE, 0, 0) for _ in range(9))
    found = replace(KILLED, last_step=0)
    assert outcome(found, history) == (Cause.RANK_DIED, Action.RESTART)


def test_time_limits_that_leave_no_time_for_a_step_are_a_crash_loop() -> None:
    history = tuple(record(Cause.TIME_LIMIT, Action.REQUEUE, 0, 0) for _ in range(2))
    found = evidence(stopped=ALL, stop_asked=StopCause.TIME_LIMIT, last_step=0)
    assert outcome(found, history) == (Cause.CRASH_LOOP, Action.STOP)


def test_each_cause_has_its_own_budget() -> None:
    limits = ResilienceConfig(max_restarts=2, max_requeues=1)
    history = [record(Cause.TIME_LIMIT, Action.REQUEUE, n, n + 1) for n in range(1)]
    history += [record(Cause.RANK_DIED, Action.RESTART, n, n + 1) for n in range(1, 2)]
    found = replace(KILLED, first_step=2, last_step=3)
    assert decide(found, history, None, limits).action is Action.RESTART
    stopped = evidence(stopped=ALL, first_step=2, last_step=3)
    spent = decide(stopped, history, None, limits)
    assert spent.action is Action.STOP
    assert "max_requeues (1) is spent" in spent.explanation


def test_close_to_the_limit_a_dead_rank_means_a_requeue() -> None:
    found = replace(KILLED, remaining_s=30.0, lead_s=60.0)
    assert outcome(found) == (Cause.RANK_DIED, Action.REQUEUE)


@pytest.mark.parametrize(
    ("cause", "action", "state"),
    [
        (Cause.FINISHED, Action.DONE, "finished"),
        (Cause.CANCELLED, Action.STOP, "cancelled"),
        (Cause.TERMINATED, Action.STOP, "stopped"),
        (Cause.TIME_LIMIT, Action.STOP, "stopped"),
        (Cause.PROGRAM_ERROR, Action.STOP, "failed"),
        (Cause.CRASH_LOOP, Action.STOP, "failed"),
    ],
)
def test_states_of_the_run(cause: Cause, action: Action, state: str) -> None:
    assert Decision(cause, action, "").state == state


steps = st.one_of(st.none(), st.integers(0, 20))
records = st.builds(
    record, st.sampled_from(list(Cause)), st.sampled_from(list(Action)), steps, steps
)


@given(st.lists(records, max_size=8), steps)
def test_an_attempt_beyond_all_earlier_ones_always_resets_the_count(
    history: list[Attempt], first: int | None
) -> None:
    found = evidence(first_step=first, last_step=21)
    assert attempts_without_progress(found, history, Cause.RANK_DIED) == 0


@given(st.lists(records, max_size=8), st.sets(st.sampled_from([0, 1])), st.booleans())
def test_nothing_but_the_ranks_word_is_success(
    history: list[Attempt], finished: set[int], terminated: bool
) -> None:
    exits = (RankExit(0, 0), RankExit(1, 0))
    found = evidence(finished=frozenset(finished), terminated=terminated, exits=exits)
    done = decide(found, history, None, LIMITS).action is Action.DONE
    assert done == (finished == {0, 1})


@given(st.sampled_from(["COMPLETING", "CANCELLED", "RUNNING", UNKNOWN]), st.booleans())
def test_a_cancelled_run_is_never_brought_back(state: str, terminated: bool) -> None:
    found = evidence(
        stopped=ALL, cancel_requested=True, terminated=terminated, job=JobInfo("7", state)
    )
    assert decide(found, (), None, LIMITS).action is Action.STOP


def test_the_lead_is_as_configured() -> None:
    assert stop_lead_s(configured=7, limit_s=60, step_s=100, save_s=100) == 7


def test_the_lead_grows_with_the_measured_save() -> None:
    lead = stop_lead_s(configured=None, limit_s=86_400, step_s=10, save_s=300)
    assert lead == 10 + 2 * 300 + 20


def test_the_lead_leaves_most_of_a_short_limit_for_training() -> None:
    assert stop_lead_s(configured=None, limit_s=60, step_s=1, save_s=300) == 15


def test_before_a_save_is_measured_the_lead_is_a_minute() -> None:
    assert stop_lead_s(configured=None, limit_s=86_400, step_s=None, save_s=None) == 60


FOUR = ("n1", "n2", "n3", "n4")
SLURM = SlurmConfig.model_validate({"nodes": 4})
NODES = NodeState(NodeRule.of(SLURM, 4, elastic=True), FOUR, FOUR, pool=frozenset({*FOUR, "n5"}))
RIGID = replace(NODES, rule=NodeRule.of(SLURM, 4, elastic=False))
LOST = evidence(lost_nodes={"n2": "no answer"}, has_queue=True)


def test_a_restart_goes_on_without_the_lost_node() -> None:
    decision = decide(LOST, (), replace(NODES, lost=("n2",)), LIMITS)
    assert (decision.action, decision.exclude) == (Action.RESTART, ())
    assert decision.explanation.endswith("it continues with 3 of 4 nodes, without n2")
    assert decision.blamed == {"n2": "no answer"}


def test_a_restart_becomes_a_requeue_where_too_few_nodes_are_left() -> None:
    nodes = replace(RIGID, lost=("n2",))
    decision = decide(LOST, (), nodes, LIMITS)
    assert (decision.action, decision.exclude) == (Action.REQUEUE, ("n2",))
    assert decision.explanation.endswith("back into the queue, without n2")
    spent = decide(LOST, (), nodes, ResilienceConfig(max_requeues=0))
    assert spent.action is Action.STOP
    assert "max_requeues (0) is spent" in spent.explanation


def test_memory_that_runs_out_on_fewer_nodes_is_requeued_for_all() -> None:
    found = evidence(failures=(failure("torch.OutOfMemoryError"),))
    before = record(Cause.OUT_OF_MEMORY, Action.RESTART, 0, 10)
    decision = decide(found, (before,), replace(NODES, current=("n1", "n3")), LIMITS)
    assert decision.action is Action.REQUEUE
    assert decision.explanation.endswith("with 2 of 4 nodes: back into the queue for all")
    assert decide(found, (before,), NODES, LIMITS).action is Action.STOP


def test_the_bad_nodes_change_no_end_of_a_run() -> None:
    nodes = replace(RIGID, lost=("n2",))
    assert decide(evidence(finished=ALL), (), nodes, LIMITS).action is Action.DONE
    assert decide(replace(LOST, cancel_requested=True), (), nodes, LIMITS).action is Action.STOP


GONE = {"node2": "Slurm took it out of the job"}


def test_a_lost_node_is_named_whatever_the_ranks_said() -> None:
    found = evidence(lost_nodes=GONE, failures=(failure(),), exits=(RankExit(0, -9, ours=True),))
    assert outcome(found) == (Cause.NODE_LOST, Action.RESTART)
    assert "node2 was lost at step 10 (Slurm took it" in decide(found, (), None, LIMITS).explanation


def test_a_lost_node_does_not_outweigh_a_cancellation_or_a_stop() -> None:
    assert outcome(evidence(lost_nodes=GONE, cancel_requested=True))[0] is Cause.CANCELLED
    stopping = evidence(lost_nodes=GONE, stop_asked=StopCause.TIME_LIMIT)
    assert outcome(stopping) == (Cause.TIME_LIMIT, Action.REQUEUE)


def test_a_job_that_slurm_requeues_for_its_lost_node_says_so() -> None:
    job = JobInfo("7", "COMPLETING", restarts=1)
    found = evidence(terminated=True, job=job, ended_for="NODE FAILURE")
    assert outcome(found) == (Cause.NODE_LOST, Action.LEAVE)


@pytest.mark.parametrize("spent", [Action.REQUEUE, Action.RESUBMIT])
def test_a_new_job_and_a_requeue_share_one_budget(spent: Action) -> None:
    job = JobInfo("7", "COMPLETING", preempted_at=99.0)
    found = evidence(stopped=ALL, terminated=True, job=job)
    limits = ResilienceConfig(max_requeues=1)
    assert decide(found, (), None, limits).action is Action.RESUBMIT
    before = (record(Cause.TIME_LIMIT, spent, 0, 5),)
    assert decide(found, before, None, limits).action is Action.STOP


def test_no_new_job_where_that_is_turned_off() -> None:
    job = JobInfo("7", "COMPLETING", preempted_at=99.0)
    decision = decide(
        evidence(stopped=ALL, terminated=True, job=job), (), None, ResilienceConfig(resubmit=False)
    )
    assert decision.action is Action.STOP
    assert "launcher resume" in decision.explanation


def test_a_limit_that_only_seems_to_have_struck_gets_no_new_job() -> None:
    """It may be a scancel after the limit, and that must stay final."""
    found = evidence(terminated=True, job=JobInfo("7", "COMPLETING"), remaining_s=-5.0)
    assert outcome(found) == (Cause.TIME_LIMIT, Action.STOP)


def test_a_term_to_a_rank_alone_restarts_in_place_and_is_no_time_limit() -> None:
    found = evidence(
        stopped=ALL, signalled=(1,), hosts={1: "node2"}, remaining_s=3600.0, lead_s=60.0
    )
    decision = decide(found, (), None, LIMITS)
    assert (decision.cause, decision.action) == (Cause.TERMINATED, Action.RESTART)
    assert "rank 1 (node2) got SIGTERM" in decision.explanation


@pytest.mark.parametrize(
    "changes",
    [
        {"remaining_s": 30.0},
        {"remaining_s": None},
        {"job": JobInfo("7", "COMPLETING")},
        {"signalled": ()},
    ],
    ids=["near-the-limit", "no-limit-known", "the-job-ends", "nobody-signalled"],
)
def test_ranks_that_stopped_where_the_job_ends_go_back_into_the_queue(
    changes: dict[str, Any],
) -> None:
    usual: dict[str, Any] = {"signalled": (1,), "remaining_s": 3600.0, "lead_s": 60.0}
    found = evidence(stopped=ALL, **{**usual, **changes})
    assert outcome(found) == (Cause.TIME_LIMIT, Action.REQUEUE)


def test_a_rank_that_left_without_a_word_is_named_with_its_node() -> None:
    lost = failure("builtins.RuntimeError", rank=0, message="Connection reset by peer", victim=True)
    found = evidence(failures=(lost,), hosts={1: "node2"})
    decision = decide(found, (), None, LIMITS)
    assert (decision.cause, decision.action) == (Cause.RANK_DIED, Action.RESTART)
    assert decision.explanation.startswith("rank 1 (node2) ended without a word")


def test_a_rank_that_died_before_it_knew_where_the_run_stands_is_not_said_to_be_at_step_0() -> None:
    found = evidence(first_step=None, last_step=0, exits=(RankExit(1, -9, "node2"),))
    assert decide(found, (), None, LIMITS).explanation.endswith("before its first step")


def test_supervisors_that_are_killed_again_and_again_are_a_crash_loop() -> None:
    lost = [record(Cause.LOST, Action.LEAVE, 0, 10)] + [
        record(Cause.LOST, Action.LEAVE, 10, 10)
        for _ in range(LIMITS.max_attempts_without_progress)
    ]
    assert after_lost_supervisors(lost[:-1], LIMITS) is None
    decision = after_lost_supervisors(lost, LIMITS)
    assert decision is not None
    assert (decision.cause, decision.action) == (Cause.CRASH_LOOP, Action.STOP)


def test_a_killed_supervisor_whose_ranks_advanced_is_no_crash_loop() -> None:
    lost = [record(Cause.LOST, Action.LEAVE, step, step + 5) for step in range(0, 50, 5)]
    assert after_lost_supervisors(lost, LIMITS) is None
    died = record(Cause.RANK_DIED, Action.RESTART, 0, 0)
    assert after_lost_supervisors([died] * 9, LIMITS) is None
