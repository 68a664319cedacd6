"""Root cause over several ranks: order of trust, order of time, victims."""

from __future__ import annotations

from pathlib import Path

from submitrain.monitor.diagnose import Diagnosis, diagnose_files, diagnose_text

WATCHDOG = (
    "[rank{rank}]:[E918 03:00:0{rank}.1 ProcessGroupNCCL.cpp:632] [Rank {rank}] Watchdog caught "
    "collective operation timeout: WorkNCCL(SeqNum={seq}, OpType=ALLREDUCE, Timeout(ms)=600000) "
    "ran for 600017 milliseconds before timing out.\n"
)


def _of(folder: Path, **logs: str) -> Diagnosis:
    for name, text in logs.items():
        (folder / f"{name}.err").write_text(text)
    return diagnose_files(sorted(folder.iterdir()))


def test_an_exception_is_the_cause_of_the_others_timeout(tmp_path: Path) -> None:
    found = _of(
        tmp_path,
        rank00000=WATCHDOG.format(rank=0, seq=5),
        rank00001="Traceback (most recent call last):\nKeyError: 'labels'\n",
    )
    assert (found.kind, found.rank) == ("python_exception", 1)


def test_the_timeout_is_listed_as_victim(tmp_path: Path) -> None:
    found = _of(
        tmp_path,
        rank00000=WATCHDOG.format(rank=0, seq=5),
        rank00001="torch.OutOfMemoryError: CUDA out of memory.\n",
    )
    assert [str(one.kind) for one in found.victims] == ["nccl_timeout"]


def test_the_earlier_of_two_ranks_by_their_clocks_is_the_cause(tmp_path: Path) -> None:
    found = _of(
        tmp_path,
        rank00000="2026-01-01 10:00:05,000 OSError: [Errno 28] No space left on device\n",
        rank00001="2026-01-01 10:00:01,000 OSError: [Errno 116] Stale file handle\n",
    )
    assert (found.kind, found.rank) == ("filesystem", 1)


def test_the_kernel_is_trusted_more_than_a_worker_that_was_killed(tmp_path: Path) -> None:
    found = _of(
        tmp_path,
        rank00000="RuntimeError: DataLoader worker (pid 4) is killed by signal: Killed.\n",
        slurm="slurmstepd: error: Detected 1 oom_kill event in StepId=8.0.\n",
    )
    assert found.kind == "host_oom"


def test_an_out_of_memory_that_hung_the_job_explains_its_time_limit() -> None:
    text = (
        "step 1 loss 2.0\ntorch.OutOfMemoryError: CUDA out of memory.\n"
        "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT ***\n"
    )
    assert diagnose_text(text).kind == "cuda_oom"


def test_what_follows_the_scheduler_is_a_consequence() -> None:
    text = (
        "slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION\n"
        "torch.distributed.elastic.multiprocessing.api.SignalException: Process 4 got signal: 15\n"
        "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer\n"
    )
    assert diagnose_text(text).kind == "preempted"


def test_lowest_sequence_number_names_the_rank_behind() -> None:
    text = "".join(WATCHDOG.format(rank=rank, seq=3 if rank == 2 else 9) for rank in range(4))
    assert diagnose_text(text).rank == 2


def test_the_rank_that_said_nothing_is_named() -> None:
    text = "".join(WATCHDOG.format(rank=rank, seq=9) for rank in (0, 1, 3))
    found = diagnose_text(text)
    assert (found.rank, "rank 2 said nothing" in found.notes[0]) == (2, True)


def test_last_completed_counts_more_than_the_number_that_hung() -> None:
    line = (
        "[rank{0}]:[E918 03:00:02.5 Process.cpp:1664] [PG 1 Rank {0}] Exception (either an "
        "error or timeout) detected by watchdog at work: 12, last enqueued NCCL work: 14, last "
        "completed NCCL work: {1}.\n"
    )
    assert diagnose_text(line.format(0, 11) + line.format(1, 7)).rank == 1


def test_torchruns_report_names_rank_and_host() -> None:
    text = """torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Failures:
[1]:
  time      : 2026-01-01_10:00:02
  host      : node1
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 11)
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_10:00:01
  host      : node2
  rank      : 4 (local_rank: 0)
  exitcode  : 1 (pid: 12)
"""
    found = diagnose_text(text)
    assert (found.kind, found.rank, found.node) == ("python_exception", 4, "node2")


def test_a_gpu_that_fell_off_the_bus_explains_the_nccl_error(tmp_path: Path) -> None:
    found = _of(
        tmp_path,
        rank00003="ncclUnhandledCudaError: Call to CUDA function failed.\n",
        kernel="[5150.25] NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.\n",
    )
    assert (found.kind, found.remedy.step) == ("gpu_xid", "exclude_node")


def test_an_unknown_exit_is_refined_by_a_warning() -> None:
    text = (
        "WARNING:hub:Max retries exceeded with url: /config.json\n"
        "srun: error: node1: task 0: Exited with exit code 1\n"
    )
    assert diagnose_text(text).kind == "network_error"
