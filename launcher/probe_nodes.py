"""Asks Slurm's nodes whether they are there: a tiny step on a node, and sinfo's list of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence

from launcher.srun import srun_environment
from monitor.slurm import Ask, ask

STEP_TIMEOUT_S = 20.0
"""Seconds for one empty task on a node; a living one takes less than a second."""
AT_ONCE = 16
"""Nodes asked at the same time."""
_USABLE = ("idle", "alloc", "mix", "comp", "plnd", "planned", "resv")
"""Beginnings of sinfo's words for nodes that run jobs, or will."""


def silent_to_a_step(nodes: Sequence[str], job_id: str) -> dict[str, str]:
    """Nodes of a job on which an empty task does not start, with srun's reason.

    Every time this node, which lives, is asked too: where a task does not start here either, it is
    the controller that is slow or away, and nobody is lost.
    """
    found: dict[str, str] = {}
    for start in range(0, len(nodes), AT_ONCE):
        found |= _ask(nodes[start : start + AT_ONCE], job_id)
    return found


def _ask(nodes: Sequence[str], job_id: str) -> dict[str, str]:
    here = os.environ.get("SLURMD_NODENAME", "")
    asked = {node: _start(node, job_id) for node in dict.fromkeys([*nodes, here]) if node}
    deadline = time.monotonic() + STEP_TIMEOUT_S
    verdicts = {node: _verdict(process, deadline) for node, process in asked.items()}
    if verdicts.pop(here, None) is not None:
        return {}
    return {node: why for node, why in verdicts.items() if why is not None}


def _start(node: str, job_id: str) -> subprocess.Popen[str]:
    flags = ["--overlap", "--mem=0", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
    return subprocess.Popen(
        ["srun", f"--jobid={job_id}", *flags, "--input=none", "--job-name=probe", "true"],
        env=step_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without the ranks' shape (SLURM_NTASKS_PER_NODE and the like): one task is asked for."""
    kept = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOBID")
    return {
        name: value
        for name, value in srun_environment(environ).items()
        if not name.startswith("SLURM_") or name in kept
    }


def _verdict(process: subprocess.Popen[str], deadline: float) -> str | None:
    """Why the node is taken for gone; None when the task ran."""
    try:
        _, said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"a task did not start on it within {STEP_TIMEOUT_S:.0f} s"
    if process.returncode == 0:
        return None
    lines = said.strip().splitlines()
    return lines[0].removeprefix("srun: ").strip() if lines else f"srun exited {process.returncode}"


def nodes_up(partition: str, *, run: Ask = ask) -> frozenset[str] | None:
    """Names of the nodes of a partition that take jobs; None when Slurm does not answer."""
    command = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
    answer = run([*command, *([f"--partition={partition}"] if partition else [])])
    if answer.code != 0:
        return None
    return usable_nodes(answer.out)


def usable_nodes(text: str) -> frozenset[str]:
    """Of sinfo's lines ``node state``, the nodes that are up: ``idle*`` does not answer."""
    pairs = [line.split() for line in text.splitlines()]
    return frozenset(
        pair[0]
        for pair in pairs
        if len(pair) == 2 and pair[1].startswith(_USABLE) and not pair[1].endswith(("*", "-", "$"))
    )
