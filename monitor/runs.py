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
    return sorted((entry.resolve() for entry in runs_dir.iterdir() if is_run(entry)), key=_age)


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
        return runs[-1]
    found = [run for run in runs if run.name == name] or [
        run for run in runs if run.name.startswith(name)
    ]
    if len(found) != 1:
        raise UserError(_not_one(name, runs_dir.absolute(), runs, found))
    return found[0]


def _not_one(name: str, where: Path, runs: list[Path], found: list[Path]) -> str:
    if found:
        names = ", ".join(run.name for run in found[:5])
        return f"run: expected the beginning of one run's name, got {name}, which fits {names}"
    if not runs:
        return f"run: no run {name}: there is none in {where}; name another folder by --runs-dir"
    recent = ", ".join(run.name for run in runs[-3:])
    return f"run: no run {name} in {where}; the latest there are {recent}"


def _age(folder: Path) -> tuple[str, str]:
    """Start of the launch as its name has it (``yyyymmddThhmmss``), then the name."""
    parts = folder.name.rsplit("-", 2)
    return (parts[1] if len(parts) == 3 else "", folder.name)
