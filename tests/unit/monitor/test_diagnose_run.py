"""Diagnosis of a run folder: scheduler, records of ranks, logs of the attempt asked for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from submitrain.errors import UserError
from submitrain.events import EventWriter, Kind
from submitrain.monitor.cli import main
from submitrain.monitor.diagnose import Diagnosis, diagnose_run
from submitrain.run_folder import RunDir
from submitrain.slurm.jobs import JobInfo


class Folder:
    """A run folder under construction, written with the writers that real runs use."""

    def __init__(self, root: Path) -> None:
        self.run_dir = RunDir(root)
        self.attempt = 0

    def begin(self) -> None:
        self.attempt = self.run_dir.claim_attempt()
        self._supervisor().write(Kind.ATTEMPT_START, world_size=2)
        for rank in range(2):
            self.rank(rank).write(Kind.START, host=f"node{rank}")

    def end(self, cause: str, **fields: Any) -> None:
        self._supervisor().write(Kind.ATTEMPT_END, cause=cause, **fields)

    def fail(self, rank: int, exception: str, message: str, *, victim: bool = False) -> None:
        self.rank(rank).write(
            Kind.FAILURE, exception=exception, message=message, victim=victim, step=3
        )

    def log(self, rank: int, text: str) -> None:
        self.run_dir.log(self.attempt, rank, "err").write_text(text)

    def rank(self, rank: int) -> EventWriter:
        return EventWriter(self.run_dir.events(rank), rank, self.attempt, "1")

    def diagnose(self, **options: Any) -> Diagnosis:
        return diagnose_run(self.run_dir.root, **options)

    def _supervisor(self) -> EventWriter:
        return EventWriter(self.run_dir.attempts, -1, self.attempt, "1")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.begin()
    return made


def test_a_ranks_own_record_tells_class_rank_and_node(folder: Folder) -> None:
    folder.fail(1, "torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB")
    folder.end("out_of_memory", explanation="rank 1 raised")
    found = folder.diagnose()
    assert (found.kind, found.rank, found.node) == ("cuda_oom", 1, "node1")


HANG = "rank 1 (node1) hung in phase step after step 3 for 75 s (budget 60 s): it stopped beating"


@pytest.mark.parametrize(
    ("cause", "explanation", "kind", "rank"),
    [
        ("hung", HANG, "nccl_timeout", 1),
        ("node_lost", "node1 is lost: Node failure on node1", "node_fail", None),
        ("host_out_of_memory", "rank 1 raised MemoryError", "host_oom", 1),
        ("loss_spike", "rank 0 raised LossSpikeError", "nan_loss", 0),
    ],
)
def test_what_the_supervisor_saw_outweighs_the_words_that_its_own_kill_left_in_the_logs(
    folder: Folder, cause: str, explanation: str, kind: str, rank: int | None
) -> None:
    folder.log(
        0,
        "srun: error: node0: task 0: Killed\nslurmstepd: error: *** STEP 7.0 ON node0 "
        "CANCELLED AT 2026-01-01T00:00:00 ***\n",
    )
    folder.end(cause, explanation=explanation)
    found = folder.diagnose()
    assert (found.kind, found.rank) == (kind, rank)


def test_a_victims_record_is_no_cause(folder: Folder) -> None:
    folder.fail(0, "RuntimeError", "Connection closed by peer", victim=True)
    folder.fail(1, "KeyError", "'labels'")
    folder.end("program_error", explanation="rank 1 raised")
    found = folder.diagnose()
    assert (found.kind, found.rank) == ("python_exception", 1)


def test_of_two_own_records_the_first_in_time_is_the_cause(folder: Folder) -> None:
    folder.fail(1, "OSError", "[Errno 28] No space left on device")
    folder.fail(0, "ModuleNotFoundError", "No module named 'x'")
    folder.end("program_error", explanation="rank 1 raised")
    assert folder.diagnose().kind == "disk_full"


def test_the_schedulers_state_is_trusted_more_than_a_log(folder: Folder) -> None:
    folder.log(0, "requests.exceptions.ConnectionError: x\n")
    folder.end("rank_died", explanation="?", evidence={"job_state": "NODE_FAIL"})
    assert folder.diagnose().kind == "node_fail"


def test_a_scheduler_that_was_asked_is_heard(folder: Folder) -> None:
    found = folder.diagnose(job=JobInfo("1", "TIMEOUT"))
    assert found.kind == "time_limit"


def test_an_unknown_scheduler_says_nothing(folder: Folder) -> None:
    assert folder.diagnose(job=JobInfo("1", "UNKNOWN")).benign


def test_slurmstepds_reason_is_heard(folder: Folder) -> None:
    folder.end("terminated", explanation="TERM", evidence={"ended_for": "NODE FAILURE"})
    assert folder.diagnose().kind == "node_fail"


def test_a_rank_killed_without_a_word_is_probably_out_of_memory(folder: Folder) -> None:
    folder.end("rank_died", explanation="rank 1 (node1) was killed by SIGKILL at step 3")
    found = folder.diagnose()
    assert (found.kind, found.rank, found.confidence < 0.6) == ("host_oom", 1, True)


def test_a_rank_that_crashed_is_named_although_its_peer_complained(folder: Folder) -> None:
    folder.fail(0, "RuntimeError", "Connection reset by peer", victim=True)
    folder.end("rank_died", explanation="rank 1 (node1) was killed by SIGSEGV at step 3")
    found = folder.diagnose()
    assert (found.kind, found.rank) == ("segfault", 1)


def test_what_the_supervisor_repeats_in_its_log_is_no_evidence(folder: Folder) -> None:
    folder.run_dir.submitit.mkdir()
    log = folder.run_dir.submitit / "1_0_log.out"
    log.write_text("2026-01-01 10:00:00 [warning] log line='OSError: [Errno 28] No space left'\n")
    folder.fail(1, "KeyError", "'labels'")
    folder.end("program_error", explanation="rank 1 raised")
    assert folder.diagnose().kind == "python_exception"


def test_what_the_supervisor_repeats_of_an_earlier_attempt_is_no_evidence(folder: Folder) -> None:
    """However kernel-like the words are: they were another attempt's, half a second ago."""
    folder.run_dir.submitit.mkdir()
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    said = f"{now} [info     ] attempt_ended  cause=out_of_memory why='CUDA out of memory: too big'"
    killed = (
        f"{now} [warning  ] log  line='slurmstepd: error: Detected 1 oom_kill event in Step 1.1'"
    )
    (folder.run_dir.submitit / "1_0_log.out").write_text(f"{said}\n{killed}\n")
    folder.fail(1, "builtins.ValueError", "no such column")
    assert folder.diagnose().kind == "python_exception"


def test_a_finished_run_is_benign_whatever_its_logs_say(folder: Folder) -> None:
    folder.log(0, "RuntimeError: caught and mended\n")
    folder.end("finished")
    assert folder.diagnose().benign


def test_the_newest_attempt_is_diagnosed(folder: Folder) -> None:
    folder.log(0, "torch.OutOfMemoryError: CUDA out of memory.\n")
    folder.end("rank_died", explanation="first")
    folder.begin()
    folder.log(0, "ModuleNotFoundError: No module named 'x'\n")
    folder.end("program_error", explanation="second")
    assert folder.diagnose().kind == "import_error"


def test_an_earlier_attempt_can_be_asked_for(folder: Folder) -> None:
    folder.log(0, "torch.OutOfMemoryError: CUDA out of memory.\n")
    folder.end("rank_died", explanation="first")
    folder.begin()
    assert folder.diagnose(attempt=1).kind == "cuda_oom"


def test_the_jobs_log_counts_only_for_the_attempt_of_its_time(folder: Folder) -> None:
    folder.run_dir.submitit.mkdir()
    line = "slurmstepd: error: *** STEP 1.0 ON n CANCELLED AT 2001-01-01T00:00:00 DUE TO PREEMPTION"
    (folder.run_dir.submitit / "1_0_log.err").write_text(f"{line} ***\n")
    folder.end("preempted", explanation="first")
    folder.begin()
    folder.log(0, "KeyError: 'labels'\n")
    folder.end("program_error", explanation="second")
    assert folder.diagnose().kind == "python_exception"


def test_a_user_error_is_a_configuration_error(folder: Folder) -> None:
    folder.fail(0, "submitrain.errors.DataError", "data/x.jsonl: expected a file, got none")
    folder.end("user_error", explanation="rank 0 raised DataError")
    assert folder.diagnose().kind == "config_error"


def test_a_running_attempt_is_said_to_run(folder: Folder) -> None:
    assert "no recorded end" in folder.diagnose().notes[0]


def test_an_unknown_attempt_is_refused_with_those_there_are(folder: Folder) -> None:
    with pytest.raises(UserError, match=r"expected attempt 7 .* got: 1"):
        folder.diagnose(attempt=7)


def test_command_prints_json_for_a_run(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.fail(1, "KeyError", "'labels'")
    folder.end("program_error", explanation="rank 1 raised")
    main(["diagnose", str(folder.run_dir.root), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (said["class"], said["rank"], said["node"]) == ("python_exception", 1, "node1")


def test_command_finds_a_run_by_the_beginning_of_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Folder(tmp_path / "small-2026-ab")
    made.run_dir.root.mkdir()
    made.run_dir.record.write_text("{}")
    made.begin()
    made.end("finished")
    main(["diagnose", "small", "--runs-dir", str(tmp_path)])
    assert capsys.readouterr().out.startswith("benign")


def test_command_prints_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.log"
    log.write_text("step 1\nKeyError: 'labels'\n")
    main(["diagnose", str(log)])
    assert f"{log}:2" in capsys.readouterr().out


def test_command_refuses_what_is_neither_log_nor_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["diagnose", str(tmp_path / "none"), "--runs-dir", str(tmp_path)])
    assert (code, "expected a log file or one run" in capsys.readouterr().err) == (2, True)
