"""The run folders that a command about any number of runs is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monitor.runs import find_run, list_runs
from train.errors import UserError


def chosen_runs(names: Sequence[str], *, everything: bool, runs_dir: Path) -> list[Path]:
    """The named runs, or every one of the runs folder.

    Raises:
        UserError: both or neither were asked for, or there is no such run.
    """
    if bool(names) == everything:
        raise UserError("run: expected runs, or --all for every run of the runs folder")
    if everything:
        return [folder.resolve() for folder in list_runs(runs_dir)]
    # A run that is named twice is charged once.
    return list(dict.fromkeys(find_run(name, runs_dir) for name in names))
