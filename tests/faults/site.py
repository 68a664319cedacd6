"""A cluster and the folders that its nodes share: one can be stopped, one can be filled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.run_folder import write_text_atomically
from tests.cluster.cluster import SlurmCluster
from tests.cluster.options import ClusterOptions
from tests.supervised_slurm import environment
from tests.tiny import tiny_config, write_samples

SITES = {
    "bare": ClusterOptions(accounting=False, kill_wait_s=20),
    "accounting": ClusterOptions(accounting=True, preempt_notice_s=30),
}
"""Preemption comes without notice on the first, with notice on the second."""
CHECKPOINT_EVERY = 4
VALIDATE_EVERY = 5
GOVERNED = "tests.faults.governed.GovernedAdamW"
IMAGE_BYTES = 512 * 2**20
SMALL_DISK = "24m"


@dataclass(frozen=True)
class Site:
    """Where courses are played."""

    name: str
    cluster: SlurmCluster
    home: Path

    @property
    def runs(self) -> Path:
        """Run folders; a file system of its own, which can be stopped."""
        return self.home / "runs"

    @property
    def small_disk(self) -> Path:
        """A file system of a few megabytes."""
        return self.home / "small"

    @property
    def pace_file(self) -> Path:
        """Seconds that a step takes at least; not on the file system that can be stopped."""
        return self.home / "pace"

    def set_pace(self, step_s: float) -> None:
        """From now on, a step takes so many seconds at least."""
        write_text_atomically(self.pace_file, str(step_s))

    @contextlib.contextmanager
    def without(self, programs: Sequence[str]) -> Iterator[None]:
        """The environment of a user who lacks these programs."""
        with environment({}):
            if programs:
                os.environ["PATH"] = str(_bin_without(self.home / "bin", programs))
            yield


@contextlib.contextmanager
def open_site(name: str, home: Path) -> Iterator[Site]:
    """Start a cluster, with its shared folders mounted before: its nodes see them, too.

    Slurm's commands of this process reach that cluster meanwhile. Needs root, for the mounts.
    """
    with contextlib.ExitStack() as stack:
        home.mkdir(parents=True, exist_ok=True)
        image = home / "runs.ext4"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", str(image))
        _mount(stack, "-o", "loop,noatime", str(image), target=home / "runs")
        _mount(stack, "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "none", target=home / "small")
        cluster = stack.enter_context(SlurmCluster.start(SITES[name]))
        stack.enter_context(environment(cluster.env))
        yield Site(name, cluster, home)


def _mount(stack: contextlib.ExitStack, *arguments: str, target: Path) -> None:
    target.mkdir(exist_ok=True)
    _run("mount", *arguments, str(target))
    stack.callback(_run, "umount", "--lazy", str(target))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` exited {done.returncode}: {done.stderr}")


def _bin_without(folder: Path, programs: Sequence[str]) -> Path:
    """A folder with a link to every program on PATH but these."""
    folder.mkdir(exist_ok=True)
    for place in os.environ["PATH"].split(os.pathsep):
        for path in Path(place).glob("*"):
            link = folder / path.name
            if path.name not in programs and not link.is_symlink():
                link.symlink_to(path)
    missing = [program for program in programs if shutil.which(program, path=str(folder))]
    assert not missing, f"{missing} still there"
    return folder


def course_config(
    home: Path, runs: Path, *, steps: int, pace_file: Path | None = None, **sections: Any
) -> dict[str, Any]:
    """The tiny training on two nodes with one rank each: validation, checkpoints, export, epochs.

    Budgets are wide: every row is judged by itself, and a matrix is no crash loop. No attempt runs
    on fewer ranks: only at equal world size is the curve the same to the bit.
    """
    held_out = home / "held_out.jsonl"
    if not held_out.exists():
        write_samples(held_out, 24)
    base: dict[str, Any] = {
        "runs_dir": str(runs),
        "slurm": {"nodes": 2, "ntasks_per_node": 1, "cpus_per_task": 1, "time": "1h"},
        "validation_dataset": {"dataset_name": str(held_out), "max_length": 64},
        "step_scheduler": {
            "grad_acc_steps": 2,
            "max_steps": steps,
            "ckpt_every_steps": CHECKPOINT_EVERY,
            "val_every_steps": VALIDATE_EVERY,
        },
        "optimizer": {"_target_": GOVERNED, "lr": 3e-3, "pace_file": str(pace_file or "")},
        "checkpoint": {"save_consolidated": "final"},
        "resilience": {"max_restarts": 1000, "max_strikes": None, "elastic": False},
    }
    merged = {
        name: {**base.get(name, {}), **sections.get(name, {})} if isinstance(part, dict) else part
        for name, part in {**base, **sections}.items()
    }
    return tiny_config(home, **merged)
