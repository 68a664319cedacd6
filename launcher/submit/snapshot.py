"""Pins the code of a run: what ranks import is what was there at launch, also after a requeue.

    code/submitrain/                 our own package
    code/doors/                      ``launcher`` and ``monitor``, its short names, last on the path
    code/workdir/                    files of the working directory, at the same relative paths
    code/diff.patch                  what the repository had uncommitted, against its commit

Ours comes first on the path and claims no name but ``submitrain``: a user's ``train.py`` or
``launcher.py`` is what ``import train`` and ``import launcher`` find.

Pinned: in a git repository the tracked files under the working directory and untracked, not
ignored ``*.py``; elsewhere ``*.py`` and small configuration files. All or nothing: a tree over the
limits is not copied at all, ranks then import from the working directory, and the record says so.
Not pinned: installed packages (the record has their versions), data, and whatever lies outside the
working directory. Files that hold a known secret value are left out and listed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.imports import IMPORT_ROOT
from submitrain.launcher.submit.record import GitState, Redactor, git
from submitrain.run_folder import RunDir

OWN_PACKAGE = "submitrain"
DOORS = ("launcher", "monitor")
DOORS_FOLDER = "doors"
USER_FOLDER = "workdir"
DIFF_NAME = "diff.patch"
MAX_FILES = 5000
MAX_TOTAL_BYTES = 64 * 2**20
MAX_FILE_BYTES = 2 * 2**20
_MAX_WALKED = 50_000
_PLAIN_SUFFIXES = {".py", ".yaml", ".yml", ".toml", ".json", ".jinja", ".jinja2", ".cfg", ".ini"}
_DATA_SUFFIXES = {
    *(".jsonl", ".parquet", ".arrow", ".csv", ".tsv", ".npy", ".npz", ".h5", ".hdf5"),
    *(".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".gguf", ".onnx", ".pkl"),
    *(".zip", ".tar", ".gz", ".zst", ".xz", ".bz2", ".whl", ".sqsh", ".sif"),
    *(".png", ".jpg", ".jpeg", ".gif", ".mp4", ".wav", ".pdf", ".so", ".o", ".pyc"),
}
_SKIPPED_FOLDERS = {"node_modules", "__pycache__", "site-packages", "venv", "env", "wandb"}
_ENVIRONMENT_MARKERS = ("pyvenv.cfg", "conda-meta")


@dataclass(frozen=True)
class Snapshot:
    """What was pinned. ``reason`` says why the user's code was not, when it was not."""

    files: int
    bytes: int
    skipped: tuple[str, ...]
    reason: str | None

    @property
    def pinned(self) -> bool:
        """Whether ranks import the user's code from the snapshot."""
        return self.reason is None

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        return {
            "pinned": self.pinned,
            "reason": self.reason,
            "files": self.files,
            "bytes": self.bytes,
            "skipped": list(self.skipped),
        }


def take_snapshot(
    run_dir: RunDir,
    *,
    workdir: Path,
    runs_dir: Path,
    git_state: GitState | None,
    redactor: Redactor,
) -> Snapshot:
    """Copy submitrain's own packages and the user's code into the run folder's ``code/``.

    Raises:
        OSError: the run folder cannot be written.
    """
    run_dir.code.mkdir()
    pin_own_package(run_dir)
    if git_state and git_state.diff:
        diff = redactor.text(git_state.diff.decode(errors="surrogateescape"))
        (run_dir.code / DIFF_NAME).write_bytes(diff.encode(errors="surrogateescape"))
    chosen, skipped, reason = _choose(workdir, runs_dir, in_git=git_state is not None)
    if reason:
        return Snapshot(0, 0, (), reason)
    return _copy(workdir, chosen, skipped, run_dir.code / USER_FOLDER, redactor)


def python_path(run_dir: RunDir, *, pinned: bool, workdir: Path, inherited: str) -> str:
    """``PYTHONPATH`` of the job: our package, the user's code, what was there before, our doors."""
    user = run_dir.code / USER_FOLDER if pinned else workdir
    before = [part for part in inherited.split(os.pathsep) if part]
    doors = run_dir.code / DOORS_FOLDER
    return os.pathsep.join([str(run_dir.code), str(user), *before, str(doors)])


def pin_own_package(run_dir: RunDir) -> None:
    """Copy submitrain itself into the run folder, unless it is there already.

    A run that an earlier version launched has no ``code/submitrain``: it goes on with this one.

    Raises:
        OSError: the run folder cannot be written.
    """
    target = run_dir.code
    if (target / OWN_PACKAGE).exists():
        return
    for door in DOORS:
        (target / DOORS_FOLDER / door).mkdir(parents=True, exist_ok=True)
        for name in ("__init__.py", "__main__.py"):
            source = IMPORT_ROOT / OWN_PACKAGE / door / name
            shutil.copyfile(source, target / DOORS_FOLDER / door / name)
    with tempfile.TemporaryDirectory(dir=target, prefix=f".{OWN_PACKAGE}-") as folder:
        copy = Path(folder) / OWN_PACKAGE
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so")
        shutil.copytree(IMPORT_ROOT / OWN_PACKAGE, copy, ignore=ignored)
        copy.rename(target / OWN_PACKAGE)  # last: it is there as a whole, or not at all


def _choose(
    workdir: Path, runs_dir: Path, *, in_git: bool
) -> tuple[list[Path], list[str], str | None]:
    """Relative paths to copy, those left out on purpose, and why nothing can be copied."""
    candidates = _tracked(workdir) if in_git else None
    chosen: list[Path] = []
    skipped: list[str] = []
    total = 0
    in_run: dict[Path, bool] = {Path(): False}
    for count, path in enumerate(_walk(workdir) if candidates is None else candidates):
        if count >= _MAX_WALKED:
            return [], [], _too_large(workdir, f"more than {_MAX_WALKED} files")
        source = workdir / path
        if source.is_relative_to(runs_dir) or _in_run_folder(workdir, path.parent, in_run):
            continue
        if source.is_symlink() or not source.is_file():
            skipped.append(f"{path} (a link or a folder)")
            continue
        size, dotenv = source.stat().st_size, path.name == ".env" or path.name.startswith(".env.")
        if path.suffix.lower() in _DATA_SUFFIXES or size > MAX_FILE_BYTES or dotenv:
            skipped.append(str(path))
            continue
        chosen.append(path)
        total += size
        if len(chosen) > MAX_FILES:
            return [], [], _too_large(workdir, f"more than {MAX_FILES} source files")
        if total > MAX_TOTAL_BYTES:
            return [], [], _too_large(workdir, f"more than {MAX_TOTAL_BYTES >> 20} MiB of source")
    return chosen, skipped, None


def _in_run_folder(workdir: Path, folder: Path, known: dict[Path, bool]) -> bool:
    """Whether a folder is or lies in a run folder, whose code snapshot is nobody's source."""
    if folder not in known:
        itself = (workdir / folder / "submissions.jsonl").exists()
        known[folder] = itself or _in_run_folder(workdir, folder.parent, known)
    return known[folder]


def _too_large(workdir: Path, what: str) -> str:
    return (
        f"{workdir} holds {what}: its code is not pinned, ranks import it from there as it is when "
        "they start; launch from the folder of your project to pin it"
    )


def _tracked(workdir: Path) -> list[Path] | None:
    """Tracked files and untracked, not ignored Python files below ``workdir``."""
    tracked = git(workdir, "ls-files", "-z")
    untracked = git(workdir, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py")
    if tracked is None or untracked is None:
        return None
    names = {name for name in (tracked + untracked).split(b"\0") if name}
    return [Path(os.fsdecode(name)) for name in sorted(names)]


def _walk(workdir: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(workdir):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not _is_foreign(here / name))
        for name in sorted(names):
            if Path(name).suffix in _PLAIN_SUFFIXES:
                yield (here / name).relative_to(workdir)


def _is_foreign(folder: Path) -> bool:
    """Whether a folder holds no code of the user: hidden, an environment, a cache."""
    return (
        folder.name.startswith(".")
        or folder.name in _SKIPPED_FOLDERS
        or any((folder / marker).exists() for marker in _ENVIRONMENT_MARKERS)
    )


def _copy(
    workdir: Path, chosen: list[Path], skipped: list[str], target: Path, redactor: Redactor
) -> Snapshot:
    files = total = 0
    for path in chosen:
        data = (workdir / path).read_bytes()
        if redactor.holds_secret(data):
            skipped.append(f"{path} (holds a secret)")
            continue
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
        shutil.copymode(workdir / path, copy)
        files += 1
        total += len(data)
    return Snapshot(files, total, tuple(skipped), None)
