"""Draws the README's picture: the terminal of a real run that is preempted, and finishes.

    python -m tests.picture docs/preempted.svg

Starts a private Slurm (tests/cluster), trains the quickstart on two of its nodes, lets a job of a
higher priority take them, waits for the end, and writes what the terminal showed as SVG.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.cluster import ClusterOptions, SlurmCluster

WIDTH = 100
LAUNCH = "python -m launcher configs/quickstart.yaml slurm.nodes=2 slurm.ntasks_per_node=1 --wait"
SHORT = (
    "step_scheduler.max_steps=60",
    "step_scheduler.ckpt_every_steps=20",
    "step_scheduler.val_every_steps=60",
    "resilience.kill_wait_s=10",
)
"""The same run in a minute, on a cluster that kills 10 s after TERM."""
PREEMPT = "sbatch --partition=high --nodes=4 --exclusive --time=1 --wrap 'sleep 15'"
PREEMPT_AFTER = "checkpoint saved"
STYLES = {"$ ": "bold cyan", "finished": "bold green", "checkpoint of step": "bold green"}
STYLES |= {"preemption": "bold yellow", "queued": "yellow", "attempt": "yellow"}
_WEB_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.S)


def main(target: Path) -> None:
    """Play the scene and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        options = ClusterOptions(accounting=False, preempt_notice_s=20)
        with SlurmCluster.start(options) as cluster:
            lines = play(cluster, Path(folder))
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in lines:
        style = next((style for word, style in STYLES.items() if word in line), "")
        console.print(Text(line, style=style))
    picture = console.export_svg(title="a run is preempted, and finishes")
    target.write_text(_WEB_FONTS.sub("", picture))  # any monospaced font of the reader's will do


def play(cluster: SlurmCluster, runs: Path) -> list[str]:
    """Launch, preempt, wait; the lines that a terminal showed, in their order."""
    words = [sys.executable, *LAUNCH.split()[1:], *SHORT, f"runs_dir={runs}"]
    run = subprocess.Popen(
        words, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert run.stdout is not None
    lines = [f"$ {LAUNCH}"]
    for line in run.stdout:
        lines.append(line.rstrip())
        if PREEMPT_AFTER in line and f"$ {PREEMPT}" not in lines:
            cluster.submit_high_priority_job(nodes=4, seconds=15)
            lines.append(f"$ {PREEMPT}")
    if run.wait() != 0:
        raise RuntimeError("\n".join(lines))
    summary = next(i for i, line in enumerate(lines) if line.startswith("╭"))
    return [*lines[:summary], "finished: 60 of 60 steps, in 2 attempts"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
