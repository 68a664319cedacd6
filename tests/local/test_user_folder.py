"""Runs from folders whose `train.py`, `launcher.py`, `monitor.py` and `utils.py` are the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

from submitrain.launcher import Run
from submitrain.run_folder import list_runs
from tests.user_folders import SAYS, write_config, write_modules, write_packages

pytestmark = pytest.mark.ranks
WAIT_S = 120.0


def in_a_shell(folder: Path, *command: str) -> None:
    """Start the run with a command, and wait for its end."""
    done = subprocess.run(
        [*command, "cfg.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def in_a_kernel(folder: Path) -> None:
    """Start the run in a notebook; the kernel's working directory is first on its path."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder), env={**os.environ, "JUPYTER_PLATFORM_DIRS": "1"})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=WAIT_S)
        code = f"from submitrain import launch\nlaunch('cfg.yaml').wait({WAIT_S})"
        answer = client.execute_interactive(
            code, timeout=WAIT_S, output_hook=lambda _: None, allow_stdin=False
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert answer["content"]["status"] == "ok", "\n".join(answer["content"]["traceback"])


WAYS: dict[str, Callable[[Path], None]] = {
    "kernel": in_a_kernel,
    "module": lambda folder: in_a_shell(folder, sys.executable, "-m", "submitrain"),
    "script": lambda folder: in_a_shell(folder, str(Path(sys.executable).with_name("submitrain"))),
}


@pytest.mark.parametrize(
    ("write", "way"),
    [*((write_modules, way) for way in WAYS), (write_packages, "kernel")],
)
def test_the_users_own_modules_are_the_ones_that_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], way: str
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = tmp_path / "mine"
    write(folder)
    write_config(folder, cluster="local")
    WAYS[way](folder)
    [found] = list_runs(folder / "runs")
    run = Run(found)
    assert run.status().state == "finished"
    assert (run.folder / "was-here").read_text() == SAYS
    assert [event["step"] for event in run.metrics()] == [1, 2, 3]
