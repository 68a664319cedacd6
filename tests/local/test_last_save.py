"""A run whose last checkpoint cannot be written has not finished; lost telemetry is counted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from submitrain.events import EventWriter, Kind, read_events
from submitrain.launcher.supervisor.evidence import AttemptEvidence
from submitrain.run_folder import RunDir
from tests.forked import run_forked, train
from tests.tiny import tiny_config


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without room for any checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.ranks
def test_without_its_last_checkpoint_a_run_has_not_finished(
    tmp_path: Path, full_disk: Path
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    RunDir(root).checkpoints.symlink_to(full_disk)
    steps = {"max_steps": 4, "grad_acc_steps": 1, "ckpt_every_steps": 2}
    with pytest.raises(AssertionError, match=r"CheckpointError: .*step-00000004: not saved"):
        run_forked(1, train, root, tiny_config(tmp_path, step_scheduler=steps))
    events = list(read_events(RunDir(root).events(0)))
    failed = [event["step"] for event in events if event["kind"] == Kind.CHECKPOINT_FAILED]
    assert failed[0] == 2
    assert failed[-1] == 4
    steps_done = [event["step"] for event in events if event["kind"] == Kind.STEP]
    assert steps_done == [1, 2, 3, 4], "training went on after the first failure"
    assert not [event for event in events if event["kind"] == Kind.FINISH]


def test_lines_that_could_not_be_written_are_counted_in_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    writer = EventWriter(folder / "rank00000.jsonl", 0, 1, "job")
    writer.write(Kind.STEP, step=1)
    writer.write(Kind.STEP, step=2)
    folder.mkdir()
    writer.write(Kind.STEP, step=3)
    [event] = read_events(writer.path)
    assert (event["step"], event["dropped"]) == (3, 2)


def test_the_final_word_names_what_was_lost() -> None:
    evidence = AttemptEvidence(attempt=1, world_size=1, unsaved=(10, 20), lost_lines=7)
    assert evidence.write_losses == (
        "; could not be written: 2 checkpoints (step 10, 20) and 7 event lines"
    )
    assert AttemptEvidence(attempt=1, world_size=1).write_losses == ""


CHATTER = """
import structlog
from submitrain.train.context import leave
from submitrain.signals import tolerate_log_write_errors
tolerate_log_write_errors()
structlog.get_logger().info("step", step=1)
print("more")
leave(7)
"""


def test_a_log_on_a_full_disk_loses_lines_and_not_the_process() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-u", "-c", CHATTER]
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 7
