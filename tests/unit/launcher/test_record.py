"""The record and the code snapshot: complete, restorable, and without a secret in any byte."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from submitrain.launcher.checks.node_software import package_versions
from submitrain.launcher.submit import snapshot as snapshot_module
from submitrain.launcher.submit.record import (
    REDACTED,
    Redactor,
    make_record,
    read_git,
)
from submitrain.launcher.submit.snapshot import (
    Snapshot,
    pin_own_package,
    python_path,
    take_snapshot,
)
from submitrain.run_folder import RunDir

TOKEN = "tok-4711-0815-abcdef"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A committed git project with one tracked file of each sort."""
    folder = tmp_path / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "model.py").write_text("SIZE = 1\n")
    (folder / "weights.safetensors").write_bytes(b"\0" * 64)
    (folder / ".gitignore").write_text("ignored.py\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "start")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """Run git as nobody in particular."""
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.com"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def snap(workdir: Path, *secrets: str) -> tuple[Snapshot, RunDir]:
    """Take a snapshot of ``workdir`` into a fresh run folder beside it."""
    run_dir = RunDir(workdir.parent / "runs" / "run")
    run_dir.root.mkdir(parents=True)
    taken = take_snapshot(
        run_dir,
        workdir=workdir,
        runs_dir=run_dir.root.parent,
        git_state=read_git(workdir),
        redactor=Redactor(secrets),
    )
    return taken, run_dir


def pinned_names(run_dir: RunDir) -> set[str]:
    """Files of the user in the snapshot."""
    user = run_dir.code / "workdir"
    return {str(path.relative_to(user)) for path in user.rglob("*") if path.is_file()}


def test_a_named_secret_and_a_guessed_one_are_redacted() -> None:
    redactor = Redactor.of({"MY_HF": "short", "WANDB_API_KEY": TOKEN, "HOME": "/root"}, ["MY_HF"])
    assert redactor.text(f"a short {TOKEN} /root") == f"a {REDACTED} {REDACTED} /root"


def test_harmless_variables_do_not_riddle_the_texts() -> None:
    environ = {"TOKENIZERS_PARALLELISM": "false", "SSH_KEY": "/etc/hosts", "SOME_KEY": "1"}
    assert Redactor.of(environ).values == ()


def test_a_secret_typed_on_the_command_line_is_redacted_by_its_key() -> None:
    redactor = Redactor(())
    assert redactor.argument("slurm.env.MY_TOKEN=abc") == f"slurm.env.MY_TOKEN={REDACTED}"
    assert redactor.argument("slurm.hf_token=${HF_TOKEN}") == "slurm.hf_token=${HF_TOKEN}"
    assert redactor.argument("optimizer.lr=1e-4") == "optimizer.lr=1e-4"


def test_git_state_names_the_commit_and_hashes_the_diff(project: Path) -> None:
    (project / "pkg" / "model.py").write_text("SIZE = 2\n")
    state = read_git(project)
    assert state is not None
    assert state.commit == git(project, "rev-parse", "HEAD").strip()
    assert (state.branch, state.dirty) == ("main", True)
    assert state.as_json()["diff_sha256"] == hashlib.sha256(state.diff).hexdigest()


def test_credentials_in_the_remote_address_are_dropped(project: Path) -> None:
    git(project, "remote", "add", "origin", f"https://user:{TOKEN}@example.com/a.git")
    state = read_git(project)
    assert state is not None
    assert state.remote == "https://example.com/a.git"


def test_outside_a_repository_there_is_no_git_state(tmp_path: Path) -> None:
    assert read_git(tmp_path) is None


def test_record_says_who_when_and_with_what(tmp_path: Path) -> None:
    record = make_record(
        redactor=Redactor((TOKEN,)),
        git_state=None,
        workdir=tmp_path,
        command=["train.py", f"--x={TOKEN}"],
        facts={"cluster": "local"},
    )
    assert record["who"]["uid"] == os.getuid()
    assert record["when"].endswith("+00:00")
    assert record["command"] == ["train.py", f"--x={REDACTED}"]
    assert record["cluster"] == "local"
    assert record["python"] == ".".join(str(part) for part in sys.version_info[:3])


def test_versions_come_without_importing_the_packages() -> None:
    code = (
        "import sys; from submitrain.launcher.checks.node_software import package_versions; "
        "package_versions(); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert package_versions()["submitit"]


def test_snapshot_takes_tracked_and_new_python_files_and_no_data(project: Path) -> None:
    (project / "new.py").write_text("NEW = 1\n")
    (project / "ignored.py").write_text("IGNORED = 1\n")
    (project / "notes.txt").write_text("untracked\n")
    taken, run_dir = snap(project)
    assert pinned_names(run_dir) == {".gitignore", "new.py", "pkg/model.py"}
    assert taken.pinned
    assert taken.skipped == ("weights.safetensors",)


def test_snapshot_outside_git_takes_source_files_only(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / ".venv").mkdir(parents=True)
    (work / "venv2").mkdir()
    (work / "venv2" / "pyvenv.cfg").touch()
    for name in ("a.py", "c.yaml", "data.csv", ".venv/x.py", "venv2/y.py"):
        (work / name).write_text("1\n")
    _, run_dir = snap(work)
    assert pinned_names(run_dir) == {"a.py", "c.yaml"}


def test_snapshot_is_what_was_launched_when_the_source_changes_later(project: Path) -> None:
    _, run_dir = snap(project)
    (project / "pkg" / "model.py").write_text("SIZE = 3\n")
    assert (run_dir.code / "workdir/pkg/model.py").read_text() == "SIZE = 1\n"


def test_commit_and_diff_restore_the_uncommitted_state(project: Path) -> None:
    (project / "pkg" / "model.py").write_text("SIZE = 2\n")
    _, run_dir = snap(project)
    git(project, "checkout", "--quiet", "--", ".")
    git(project, "apply", str(run_dir.code / "diff.patch"))
    assert (project / "pkg" / "model.py").read_text() == "SIZE = 2\n"


def test_no_byte_of_a_snapshot_holds_a_known_secret(project: Path) -> None:
    (project / "pkg" / "model.py").write_text(f"KEY = '{TOKEN}'\n")
    (project / "settings.py").write_text(f"KEY = '{TOKEN}'\n")
    (project / ".env").write_text(f"KEY={TOKEN}\n")
    git(project, "add", "-f", ".env")
    taken, run_dir = snap(project, TOKEN)
    holders = [p for p in run_dir.code.rglob("*") if p.is_file() and TOKEN in p.read_text("latin1")]
    assert holders == []
    assert "settings.py (holds a secret)" in taken.skipped


def test_runs_folders_are_no_source(project: Path) -> None:
    other = project / "old_runs" / "x"
    (other / "code").mkdir(parents=True)
    (other / "submissions.jsonl").touch()
    (other / "code" / "copy.py").write_text("1\n")
    _, run_dir = snap(project)
    assert "old_runs/x/code/copy.py" not in pinned_names(run_dir)


def test_a_tree_over_the_limit_is_not_pinned_and_says_why(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_module, "MAX_FILES", 1)
    taken, run_dir = snap(project)
    assert taken.reason is not None
    assert "launch from the folder of your project" in taken.reason
    assert not (run_dir.code / "workdir").exists()


def test_a_users_train_py_does_not_shadow_our_package(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "train.py").write_text("raise SystemExit('shadowed')\n")
    (work / "mine.py").write_text(
        "import submitrain.run_folder\nprint(submitrain.run_folder.__file__)\n"
    )
    taken, run_dir = snap(work)
    path = python_path(run_dir, pinned=taken.pinned, workdir=work, inherited="")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import mine"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(run_dir.code / "submitrain" / "run_folder.py"), done.stderr


def test_a_run_of_an_earlier_version_gets_our_package_when_it_is_resumed(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    (run_dir.code / "launcher").mkdir(parents=True)  # what the first edition pinned
    pin_own_package(run_dir)
    pinned = run_dir.code / "submitrain"
    assert (pinned / "launcher/worker/rank.py").is_file() and not (pinned / "train").is_symlink()
    (pinned / "mine.txt").write_text("a second resume changes nothing")
    pin_own_package(run_dir)
    assert (pinned / "mine.txt").exists()
    assert sorted(path.name for path in run_dir.code.iterdir()) == [
        "doors",
        "launcher",
        "submitrain",
    ]
