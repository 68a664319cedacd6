"""submissions.jsonl: who continues whose work, and with which parameters."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from submitrain.launcher.submit.claims import (
    adopt,
    chain_of,
    claim_submission,
    note_submission,
    read_submissions,
    recorded_parameters,
)
from submitrain.launcher.supervisor.requeue import with_exclusion, without_once
from submitrain.run_folder import RunDir


def line(job_id: str, via: str = "cli", **more: Any) -> dict[str, Any]:
    return {"job_id": job_id, "via": via, **more}


LINES = [
    line("1"),
    line("2", "supervisor", after="1"),
    line("3"),
    line("4", "supervisor", after="3"),
    line("5", "supervisor", after="4"),
]
CHAINS = {
    "1": ("1",),
    "2": ("2", "1"),
    "3": ("3",),  # resumed by hand: fresh budgets
    "5": ("5", "4", "3"),
    "9": ("9",),
}


@pytest.mark.parametrize("job_id", CHAINS)
def test_a_job_continues_those_whose_supervisors_submitted_the_next(job_id: str) -> None:
    assert chain_of(LINES, job_id) == CHAINS[job_id]


def test_a_chain_that_bites_its_tail_ends() -> None:
    lines = [line("1", "supervisor", after="2"), line("2", "supervisor", after="1")]
    assert chain_of(lines, "2") == ("2", "1")


def test_a_job_whose_submitter_died_too_early_writes_its_own_line(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    note_submission(run_dir, "slurm", {"job_id": "1", "attempt": 0, "sbatch": {"nodes": 2}})
    adopt(run_dir, "1")
    assert len(read_submissions(run_dir)) == 1
    adopt(run_dir, "2")
    adopt(run_dir, "2")
    lines = read_submissions(run_dir)
    assert [one["job_id"] for one in lines] == ["1", "2"]
    assert (lines[1]["via"], lines[1]["after"], lines[1]["cluster"]) == ("supervisor", "1", "slurm")
    assert recorded_parameters(lines) == {"nodes": 2}


def test_a_folder_without_submissions_gets_no_line(tmp_path: Path) -> None:
    adopt(RunDir(tmp_path), "7")
    assert read_submissions(RunDir(tmp_path)) == []


def test_what_only_the_first_job_waited_for_is_left_out() -> None:
    parameters = {
        "nodes": 2,
        "dependency": "afterok:12",
        "additional_parameters": {"begin": "now+1hour", "requeue": True},
    }
    kept = {"nodes": 2, "additional_parameters": {"requeue": True}}
    assert without_once(parameters) == kept


def test_excluded_nodes_come_beside_the_users_own() -> None:
    assert with_exclusion({"exclude": "n[1-2]"}, ("n7", "n8"))["exclude"] == "n[1-2],n7,n8"
    assert with_exclusion({}, ("n7",))["exclude"] == "n7"
    assert with_exclusion({"exclude": "n1"}, ()) == {"exclude": "n1"}


def test_a_user_without_a_name_may_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in many containers: the uid has no entry in the password database."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    run_dir = RunDir(tmp_path)
    with claim_submission(run_dir, "launch") as claim:
        holder = json.loads((claim.folder / "holder.json").read_text())
    assert holder["user"] == str(os.getuid())
