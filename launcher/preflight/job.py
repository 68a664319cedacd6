"""The job of ``assess --nodes``: a preflight and nothing else; picklable by reference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.allocation import allocation_of
from launcher.job import configure_log
from launcher.preflight.conduct import Preflight, now_and_then
from launcher.signals import SignalNotes
from train.config.load import load_resolved
from train.rundir import RunDir


@dataclass(frozen=True)
class NodesJob:
    """Looks at the nodes that it was given; the verdict is in ``attempts/001/preflight.json``."""

    folder: str

    def __call__(self) -> dict[str, Any]:
        """Look, and return the verdict in short."""
        configure_log()
        signals = SignalNotes()
        signals.install()
        run_dir = RunDir(Path(self.folder))
        config = load_resolved(run_dir.config, os.environ)
        allocation = allocation_of(run_dir, config, os.environ)
        nodes = allocation.living_nodes() or allocation.spawner.nodes
        told = now_and_then(lambda: signals.terminated)
        attempt = run_dir.claim_attempt()
        return Preflight(run_dir, config, allocation, told).run(attempt, nodes).in_short()
