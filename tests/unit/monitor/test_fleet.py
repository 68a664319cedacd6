"""What `serve` and `top` keep of runs between their looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from submitrain.monitor.watch.fleet import Fleet
from submitrain.run_folder import list_runs, write_json_atomically
from submitrain.status import RunState
from tests.fleet_parts import living, process, run_named

SQUEUE = r"""#!/bin/bash
for word in "$@"; do case $word in --jobs=*) jobs=${word#--jobs=} ;; esac; done
for job in ${jobs//,/ }; do
  printf '%s\x1f%s\x1fNone\x1f\x1f1\n' "$job" "$(cat STATE)"
done
"""


def test_a_run_whose_job_is_between_two_lives_is_asked_about_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's NODE_FAIL comes before its PENDING: only the run's own last word is an end."""
    state, squeue = tmp_path / "STATE", tmp_path / "bin/squeue"
    squeue.parent.mkdir()
    squeue.write_text(SQUEUE.replace("STATE", str(state)))
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=":")
    run = run_named(tmp_path / "runs", "one")
    write_json_atomically(run.dir.record, {"cluster": "slurm"})
    run.submit(job_id="7", cluster="slurm")
    run.begin()
    fleet = Fleet(find=lambda: list_runs(tmp_path / "runs"))
    state.write_text("NODE_FAIL")
    assert [one.status.state for one in fleet.poll().runs] == [RunState.FAILED]
    state.write_text("PENDING")
    assert [one.status.state for one in fleet.poll().runs] == [RunState.QUEUED]


def test_a_run_that_cannot_be_read_is_named_and_hides_no_other(tmp_path: Path) -> None:
    with process() as pid:
        living(tmp_path, "good", pid)
        bad = living(tmp_path, "bad", pid)
        bad.dir.attempts.unlink()
        bad.dir.attempts.mkdir()
        view = Fleet(find=lambda: list_runs(tmp_path)).poll()
    assert [one.status.run_id.partition("-")[0] for one in view.runs] == ["good"]
    assert "Is a directory" in view.problems[bad.dir.run_id]
