"""Folders of users whose files are called like parts of this project: `train.py`, `launcher.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

NAMES = ("train", "launcher", "monitor", "utils")
MAIN = '''"""The user's own training function, among modules of the user's."""

import launcher
import monitor
import utils
{more}

def main(context, steps):
    mine = [module.MINE for module in (launcher, monitor, utils)]
    context.run_folder.joinpath("was-here").write_text(" ".join(mine))
    for step in range(steps):
        context.should_stop(step)
        context.log(step=step + 1, loss=utils.halved(steps - step))
'''
UTILS = "MINE = 'my utils'\n\n\ndef halved(number):\n    return number / 2\n"
SAYS = "my launcher my monitor my utils"
"""What the function leaves in the run folder, if every module was the user's own."""


def write_modules(folder: Path) -> None:
    """`train.py`, `launcher.py`, `monitor.py` and `utils.py`."""
    folder.mkdir()
    for name in ("launcher", "monitor"):
        (folder / f"{name}.py").write_text(f"MINE = 'my {name}'\n")
    (folder / "utils.py").write_text(UTILS)
    (folder / "train.py").write_text(MAIN.format(more=""))


def write_packages(folder: Path) -> None:
    """The same names as folders; ``train`` has modules called like those of our ``train``."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"MINE = 'my {name}'\n")
    (folder / "utils" / "__init__.py").write_text(UTILS)
    (folder / "train" / "context.py").write_text("WHOSE = 'mine'\n")
    more = "from train.context import WHOSE\n\nassert WHOSE == 'mine'\n"
    (folder / "train" / "__init__.py").write_text(MAIN.format(more=more))


def write_config(folder: Path, **sections: Any) -> Path:
    """``cfg.yaml``: one rank that calls ``train.main``."""
    config = {
        "entry": {"_target_": "train.main", "steps": 3},
        "runs_dir": "runs",
        "logging": {"heartbeat_s": 1.0},
        "slurm": {"nodes": 1, "ntasks_per_node": 1, "time": "5m"},
        **sections,
    }
    (folder / "cfg.yaml").write_text(yaml.safe_dump(config))
    return folder / "cfg.yaml"
