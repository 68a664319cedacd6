"""However many runs there are, the scheduler is asked the same number of times."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from submitrain.launcher.cli import main as launcher_cli
from submitrain.monitor import cli as monitor_cli
from tests.alert_parts import FakeRun
from tests.cluster import SlurmCluster

PROGRAMS = ("squeue", "sacct", "scontrol", "sinfo", "sdiag")
COMMANDS = {
    "watch --all": ["watch", "--all", "--once"],
    "list": ["list", "--json"],
    "cost": ["cost", "--all", "--format", "csv"],
}

pytestmark = pytest.mark.slurm


class Shims:
    """Programs in front of Slurm's own in PATH, which note every call and pass it on."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls.log"
        self.path = folder
        for name in PROGRAMS:
            shim = folder / name
            shim.write_text(
                f'#!/bin/sh\necho {name} >> {self.log}\nexec {shutil.which(name)} "$@"\n'
            )
            shim.chmod(0o755)

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Calls by program while something runs."""
        self.log.write_text("")
        calls: Counter[str] = Counter()
        yield calls
        calls.update(self.log.read_text().split())


def runs_in(folder: Path, number: int, alive: str) -> Path:
    """Runs of Slurm jobs: the first one lives, of the others Slurm knows nothing any more."""
    for index in range(number):
        run = FakeRun(folder, name=f"toy-20260101T000000-{index:08x}")
        job_id = alive if index == 0 else str(500_000 + index)
        run.submit(cluster="slurm", job_id=job_id)
    return folder


def call(command: list[str], runs_dir: Path) -> None:
    main = launcher_cli.main if command[0] == "list" else monitor_cli.main
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*command, "--runs-dir", str(runs_dir)]) == 0


def requests(cluster: SlurmCluster) -> Counter[str]:
    """Requests that the controller has served so far, by type (sdiag(1))."""
    text = cluster.run("sdiag").partition("Remote Procedure Call statistics by user")[0]
    found = re.findall(r"^\s+(REQUEST_(?:JOB|STEP|NODE|PARTITION)\w+)\s.*count:(\d+)", text, re.M)
    # Of one job squeue asks by another name.
    served: Counter[str] = Counter()
    for name, count in found:
        served[name.removesuffix("_SINGLE")] += int(count)
    return served


@pytest.mark.parametrize("what", COMMANDS)
def test_one_ten_and_two_hundred_runs_take_the_same_calls(
    what: str, slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    shims = Shims(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    alive = str(slurm_cluster.sbatch("sleep 120"))
    seen, served = [], []
    for number in (1, 10, 200):
        folder = runs_in(tmp_path / f"runs{number}", number, alive)
        before = requests(slurm_cluster)
        with shims.counting() as calls:
            call(COMMANDS[what], folder)
        served.append(requests(slurm_cluster) - before)
        seen.append(calls)
    slurm_cluster.cancel_all()
    # One run that squeue knows needs no accounting; with any that it forgot, sacct is asked once.
    assert seen[1] == seen[2]
    assert seen[0] - Counter(sacct=1) == seen[2] - Counter(sacct=seen[2]["sacct"] or 1)
    assert seen[2]["squeue"] == 1
    assert seen[2]["sacct"] <= 2
    assert not seen[2]["scontrol"]
    assert served[0] == served[1] == served[2]
    assert sum(served[2].values()) >= 1
