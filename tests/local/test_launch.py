"""Launching for real: detached local sessions, found again, cancelled, resumed, and no secrets.

The ranks are real processes under the real supervisor and submitit; only training is replaced by
``tests/toy_rank.py``, which needs no torch.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from submitrain.errors import ClusterError, RunError, UserError
from submitrain.events import read_events
from submitrain.launcher import Run, launch
from submitrain.launcher.cli.progress import follow_on
from submitrain.monitor.audit.ledger import read_trail
from submitrain.processes import ProcessRef
from submitrain.run_folder import list_runs
from submitrain.status import RunState
from tests.paths import REPOSITORY, TOY_RANK
from tests.tiny import tiny_config

WAIT_S = 120.0
SLOW, QUICK = "0.25", "0.01"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's project as the working directory; runs that still go on are ended afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(TOY_RANK, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "toy_rank")
    monkeypatch.setenv("TOY_STEP_S", QUICK)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    yield folder
    for run in list_runs(folder / "runs"):
        end_processes(Run(run))


def end_processes(run: Run) -> None:
    """Kill whatever of a local run is left."""
    for line in read_events(run.run_dir.submissions):
        for name in ("process", "host_process"):
            process = ProcessRef.from_json(line.get(name))
            if process and process.alive():
                os.killpg(os.getpgid(process.pid), signal.SIGKILL)


def config(folder: Path, **sections: Any) -> dict[str, Any]:
    """A toy run of two ranks and twenty steps in ``folder``."""
    steps = {"max_steps": 20}
    return tiny_config(folder, **{"step_scheduler": steps, "cluster": "local", **sections})


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in another process."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Poll until ``condition`` holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def steps_of(run: Run) -> list[int]:
    """Steps that the run recorded."""
    return [event["step"] for event in run.metrics()]


def test_launch_returns_while_the_run_goes_on_and_wait_sees_it_finish(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEP_S", "0.1")
    run = launch(config(project))
    assert run.status().state in (RunState.STARTING, RunState.RUNNING)
    assert run.wait(WAIT_S).state is RunState.FINISHED
    assert steps_of(run) == list(range(1, 21))


@pytest.mark.timeout(WAIT_S)
def test_whoever_waits_learns_of_the_end_from_the_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler is asked rarely: the end must not wait for the next time."""
    monkeypatch.setattr("submitrain.launcher.run.WAIT_POLL_S", {"local": 3600.0})
    monkeypatch.setattr("submitrain.launcher.cli.progress.STATUS_EVERY_S", {"local": 3600.0})
    assert launch(config(project)).wait().state is RunState.FINISHED
    followed = follow_on(launch(config(project, name="followed")), Console(file=StringIO()))
    assert followed.state is RunState.FINISHED


def test_a_program_that_merely_imports_a_kernel_is_no_notebook() -> None:
    code = "import ipykernel; from submitrain.launcher.submit.record import via; print(via())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.split() == ["python"]


def test_result_holds_what_the_run_achieved(project: Path) -> None:
    result = launch(config(project)).result(WAIT_S)
    assert (result.steps, result.first_loss, result.last_loss) == (20, 4.0, 0.2)


def test_a_run_is_found_by_another_process(project: Path) -> None:
    run = launch(config(project), wait=True)
    done = python("-m", "launcher", "status", run.run_id[:-3], "--json", cwd=project)
    assert json.loads(done.stdout)["state"] == "finished", done.stderr


def test_the_run_folder_has_the_documented_name_and_content(project: Path) -> None:
    run = launch(config(project), wait=True)
    name, stamp, digest = run.run_id.rsplit("-", 2)
    assert (name, len(digest)) == ("tiny", 8)
    assert time.strptime(stamp, "%Y%m%dT%H%M%S")
    record = json.loads(run.run_dir.record.read_text())
    assert record["config"]["sha256"].startswith(digest)
    assert (record["cluster"], record["workdir"]) == ("local", str(project))


def test_checkpoint_dir_holds_this_runs_checkpoints_in_a_folder_of_its_own(project: Path) -> None:
    shared = project / "shared"
    sections = {"checkpoint": {"checkpoint_dir": str(shared), "save_consolidated": False}}
    run = launch(config(project, **sections))
    assert run.wait(WAIT_S).state is RunState.FINISHED
    assert run.run_dir.checkpoints.resolve() == shared / run.run_id


def test_a_checkpoint_dir_that_cannot_be_made_leaves_nothing_behind(project: Path) -> None:
    (project / "file").write_text("in the way")
    sections = {"checkpoint": {"checkpoint_dir": str(project / "file"), "save_consolidated": False}}
    with pytest.raises(UserError, match=r"checkpoint\.checkpoint_dir: expected a folder"):
        launch(config(project, **sections))
    assert list_runs(project / "runs") == []


def test_two_launches_in_one_second_get_two_folders(project: Path) -> None:
    first, second = launch(config(project)), launch(config(project))
    assert first.folder != second.folder
    assert {run.wait(WAIT_S).state for run in (first, second)} == {RunState.FINISHED}


def test_ranks_run_the_pinned_code_even_if_the_source_has_changed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEP_S", SLOW)
    run = launch(config(project))
    (project / "toy_rank.py").write_text("raise SystemExit('not the pinned code')\n")
    wait_for(lambda: steps_of(run), "the first step")
    assert f"from {run.run_dir.code / 'workdir' / 'toy_rank.py'}" in run.logs()


@pytest.mark.parametrize(("devices", "seen"), [("1,3", "1,3"), (None, "all"), ("", "")])
def test_ranks_see_the_gpus_that_the_launching_shell_sees(
    project: Path, monkeypatch: pytest.MonkeyPatch, devices: str | None, seen: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    run = launch(config(project), wait=True)
    assert f"gpus {seen}\n" in run.logs()


def test_a_run_survives_the_death_of_everything_that_launched_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEP_S", SLOW)
    (project / "cfg.json").write_text(json.dumps(config(project)))
    code = (
        "import json, time; from launcher import launch; "
        "print(launch(json.load(open('cfg.json'))).folder, flush=True); time.sleep(600)"
    )
    shell = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with shell:
        assert shell.stdout is not None
        folder = shell.stdout.readline().strip()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL):
            os.killpg(shell.pid, number)
    run = Run.open(folder)
    assert run.wait(WAIT_S).state is RunState.FINISHED


def test_cancel_saves_stops_and_is_final(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_STEP_S", SLOW)
    run = launch(config(project))
    wait_for(lambda: steps_of(run), "the first step")
    run.cancel()
    assert run.wait(WAIT_S).state is RunState.CANCELLED
    assert len(steps_of(run)) < 20
    with pytest.raises(UserError, match="has ended already: cancelled"):
        run.cancel()


def test_resume_goes_on_where_a_cancelled_run_stopped(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEP_S", SLOW)
    run = launch(config(project))
    wait_for(lambda: steps_of(run), "the first step")
    with pytest.raises(UserError, match="needs no resume"):
        run.resume()
    run.cancel()
    run.wait(WAIT_S)
    monkeypatch.setenv("TOY_STEP_S", QUICK)
    status = run.resume().wait(WAIT_S)
    assert (status.state, status.attempt, len(status.job_ids)) == (RunState.FINISHED, 2, 2)
    assert steps_of(run) == list(range(1, 21))
    with pytest.raises(UserError, match="has finished"):
        run.resume()


def test_resume_with_other_resources_keeps_the_global_batch_size(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submitrain.config.resolve import load_resolved

    monkeypatch.setenv("TOY_STEP_S", SLOW)
    run = launch(config(project))
    before = load_resolved(run.run_dir.config, os.environ)
    wait_for(lambda: steps_of(run), "the first step")
    run.terminate()
    assert run.wait(WAIT_S).state is RunState.STOPPED
    (ended,) = [one for one in read_trail(run.run_dir).entries if one["act"] == "terminate"]
    assert (ended["outcome"], ended["job_id"]) == ("done", run.status().job_ids[0])
    assert (ended["who"]["uid"], ended["who"]["via"]) == (os.getuid(), "python")
    monkeypatch.setenv("TOY_STEP_S", QUICK)
    assert run.resume(ntasks_per_node=1).wait(WAIT_S).state is RunState.FINISHED
    after = load_resolved(run.run_dir.config, os.environ)
    assert after.world_size == 1
    assert after.batch().global_size == before.batch().global_size


def test_a_refused_resume_leaves_the_run_as_it_was(project: Path) -> None:
    run = launch(config(project), overrides=["step_scheduler.max_steps=400"])
    wait_for(lambda: steps_of(run), "the first step")
    run.cancel()
    run.wait(WAIT_S)
    text = run.run_dir.config.read_text()
    with pytest.raises(UserError, match=r"slurm\.nodes"):
        run.resume(nodes=0)
    assert run.status().state is RunState.CANCELLED
    assert run.run_dir.config.read_text() == text


def test_what_fails_after_the_submission_does_not_undo_a_resume(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new job would read the old wish to cancel, and end itself."""
    run = launch(config(project), overrides=["step_scheduler.max_steps=400"])
    wait_for(lambda: steps_of(run), "the first step")
    run.cancel()
    run.wait(WAIT_S)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("submitrain.launcher.submit.start.note_submission", full)
    with pytest.raises(OSError, match="No space left"):
        run.resume()
    assert not run.run_dir.cancel_request.exists()
    wait_for(run.run_dir.summary.exists, "the end of the job that nobody noted")
    assert RunState(json.loads(run.run_dir.summary.read_text())["state"]) is RunState.FINISHED


def test_a_killed_job_is_seen_as_failed_and_not_as_running_for_ever(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEP_S", SLOW)
    run = launch(config(project))
    wait_for(lambda: steps_of(run), "the first step")
    end_processes(run)
    status = run.wait(WAIT_S)
    assert status.state is RunState.FAILED
    assert "without a summary" in status.why
    with pytest.raises(RunError, match="without a summary"):
        run.result()


def test_wait_gives_up_in_time_and_the_run_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEP_S", SLOW)
    run = launch(config(project))
    with pytest.raises(TimeoutError):
        run.wait(0.1)
    assert not run.status().state.ended


def test_the_pickle_holds_the_run_folders_path_and_nothing_else(project: Path) -> None:
    from submitrain.launcher.supervisor.job import TrainingJob

    run = launch(config(project), wait=True)
    [path] = run.run_dir.submitit.glob("*_submitted.pkl")
    delayed = pickle.loads(path.read_bytes())
    assert delayed.function == TrainingJob(str(run.folder))
    assert (delayed.args, delayed.kwargs) == ((), {})


def test_no_byte_of_a_run_folder_holds_a_secret(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"MY_HF": "hf-5Ecr3t-1", "WANDB_API_KEY": "wb-5Ecr3t-2", "OTHER_TOKEN": "ot-5Ecr3t-3"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    (project / "settings.py").write_text(f"KEY = '{secrets['OTHER_TOKEN']}'\n")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--token={secrets['WANDB_API_KEY']}"])
    slurm = {"hf_token": "${MY_HF}", "wandb_key": "${WANDB_API_KEY}"}
    run = launch(config(project, slurm={"ntasks_per_node": 2, **slurm}), wait=True)
    assert run.status().state is RunState.FINISHED
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    holders = [path for path in files if b"5Ecr3t" in path.read_bytes()]
    assert len(files) > 20
    assert holders == []


def test_a_missing_secret_is_refused_before_anything_is_written(project: Path) -> None:
    with pytest.raises(UserError, match="NOT_SET_ANYWHERE"):
        launch(config(project, slurm={"hf_token": "${NOT_SET_ANYWHERE}"}))
    assert not (project / "runs").exists()


def test_a_file_in_the_way_of_the_runs_folder_is_one_clear_error(project: Path) -> None:
    (project / "runs").write_text("not a folder")
    with pytest.raises(UserError, match=r"^runs_dir: .*in the way"):
        launch(config(project))


def test_a_job_that_does_not_start_leaves_nothing_behind(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A submitit that cannot be imported comes first on the path of the job, and only there.
    broken = project / "broken" / "submitit"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('submitit is broken here')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    with pytest.raises(RunError, match="submitit is broken here"):
        launch(config(project))
    assert not (project / "runs").exists()


def test_slurm_without_slurm_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ClusterError, match="no sbatch on this machine"):
        launch(config(project), cluster="slurm")
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("tiny-2", "which fits"), ("tony", "no run tony"), ("latest-", "no run latest-")],
)
def test_a_name_that_is_not_one_runs_is_refused(project: Path, name: str, message: str) -> None:
    for second in (1, 2):
        folder = project / "runs" / f"tiny-20260101T00000{second}-aaaaaaaa"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        Run.open(name)


def test_latest_is_the_run_that_was_launched_last_whatever_its_name(project: Path) -> None:
    for name in ("zeta-20260101T000001-aaaaaaaa", "alpha-20260101T000002-aaaaaaaa"):
        folder = project / "runs" / name
        folder.mkdir(parents=True)
        (folder / "record.json").write_text("{}")
    assert Run.open("latest").run_id.startswith("alpha")
