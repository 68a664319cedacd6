"""Finds run folders. Reads directories only."""

from __future__ import annotations

from pathlib import Path

from train.errors import UserError

LATEST = "latest"


def is_run(folder: Path) -> bool:
    """Whether a launch completed this folder."""
    return (folder / "record.json").is_file() and not folder.name.startswith(".")


def list_runs(runs_dir: Path) -> list[Path]:
    """Run folders, oldest launch first.

    Raises:
        OSError: the folder is there and cannot be read now.
    """
    if not runs_dir.is_dir():
        return []
    return sorted((entry for entry in runs_dir.iterdir() if is_run(entry)), key=_age)


def find_run(name: str, runs_dir: Path) -> Path:
    """The run of that folder, name, unique beginning of a name, or the ``latest`` one.

    Raises:
        UserError: there is none, or more than one.
    """
    folder = Path(name).expanduser()
    if is_run(folder):
        return folder.resolve()
    runs = list_runs(runs_dir)
    if name == LATEST and runs:
        return runs[-1].resolve()
    found = [run for run in runs if run.name == name] or [
        run for run in runs if run.name.startswith(name)
    ]
    if len(found) == 1:
        return found[0].resolve()
    known = ", ".join(run.name for run in (found or runs)[-5:]) or "none"
    raise UserError(
        f"run: expected a run folder, its name or the beginning of one run's name, got {name}; in "
        f"{runs_dir.absolute()} there are: {known}; name another folder by --runs-dir"
    )


def _age(folder: Path) -> tuple[str, str]:
    """Start of the launch as its name has it (``yyyymmddThhmmss``), then the name."""
    parts = folder.name.rsplit("-", 2)
    return (parts[1] if len(parts) == 3 else "", folder.name)
