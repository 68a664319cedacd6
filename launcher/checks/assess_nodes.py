"""``assess --nodes N``: the preflight as a job of its own, before a run depends on the nodes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from submitrain.config.resolve import load_resolved
from submitrain.errors import RunError, UserError
from submitrain.launcher.checks.finding import Finding, Level
from submitrain.launcher.checks.preflight import Preflight, throttled
from submitrain.launcher.checks.render import findings_table
from submitrain.launcher.checks.schedulability import permit
from submitrain.launcher.plan.config import load_config
from submitrain.launcher.plan.prepare import Prepared, prepare
from submitrain.launcher.plan.sbatch import job_python
from submitrain.launcher.submit.snapshot import python_path
from submitrain.launcher.submit.start import folders_of, make_folder
from submitrain.launcher.submit.submit import job_environment, make_executor, submit_callable
from submitrain.launcher.supervisor.allocation import allocation_of
from submitrain.launcher.supervisor.attempt import SignalNotes
from submitrain.launcher.supervisor.job import configure_log
from submitrain.preflight_results import preflight_text
from submitrain.run_folder import RunDir
from submitrain.slurm.client import scancel, show_job
from submitrain.text import last_lines

LIMIT_MIN = 20
"""Time limit of the job: about twice what the slowest preflight may take."""
POLL_S = 1.0
GONE_POLLS = 5
"""Polls of an ended job without its result: a shared file system may show it late."""
FOLDER = "assess"
MOST_NAMED = 6
_BARE: Mapping[str, Any] = {
    "name": "assess",
    "model": {"config": {"model_type": "llama"}, "train_tokenizer_vocab_size": 300},
    "dataset": {"_target_": "python_stdlib"},
    "step_scheduler": {"max_steps": 1},
}
"""Stands for a configuration where none is given: nothing of it is trained."""


@dataclass(frozen=True)
class NodesJob:
    """Checks the nodes that it was given; the result is in ``attempts/001/preflight.json``.

    Pickled for the job by its import path.
    """

    folder: str

    def __call__(self) -> dict[str, Any]:
        """Run the preflight, and return its result in short."""
        configure_log()
        signals = SignalNotes()
        signals.install()
        run_dir = RunDir(Path(self.folder))
        config = load_resolved(run_dir.config, os.environ)
        allocation = allocation_of(run_dir, config, os.environ)
        nodes = allocation.living_nodes() or allocation.spawner.nodes
        told = throttled(lambda: signals.terminated)
        attempt = run_dir.claim_attempt()
        return Preflight(run_dir, config, allocation, told).run(attempt, nodes).in_short()


def assess_nodes(
    nodes: int, config: str | None, *, quick: bool, say: Callable[[str], None]
) -> tuple[dict[str, Any], Path]:
    """Run the preflight on so many nodes; its record, and the folder that it is in.

    Raises:
        UserError: the configuration is wrong, or the cluster refuses the job.
        RunError: the job ended without a result.
    """
    if nodes < 1:
        raise UserError(f"--nodes: expected an integer >= 1, got {nodes}")
    source: Any = config or dict(_BARE)
    overrides = {
        "slurm.nodes": nodes,
        "slurm.spare_nodes": 0,
        "slurm.time": LIMIT_MIN,
        "slurm.requeue": "false",
        "preflight": "quick" if quick else "full",
        "runs_dir": str(Path(load_config(source).config.runs_dir) / FOLDER),
        # The arithmetic of another number of nodes is none of this job's business.
        "step_scheduler.global_batch_size": "none",
        "distributed.dp_size": "none",
        "distributed.dp_replicate_size": "none",
    }
    prepared = prepare(source, overrides=[f"{key}={value}" for key, value in overrides.items()])
    permit(prepared.schedulability(), way_out="ask for what it has")
    with folders_of(prepared.runs_dir):
        run_dir = make_folder(prepared)
    if prepared.cluster.name == "local":
        say(f"no Slurm is used ({prepared.cluster.reason}): this machine alone is checked")
        NodesJob(str(run_dir.root))()
        return _record(run_dir), run_dir.root
    return _by_a_job(run_dir, prepared, say), run_dir.root


def _by_a_job(run_dir: RunDir, prepared: Prepared, say: Callable[[str], None]) -> dict[str, Any]:
    inherited = os.environ.get("PYTHONPATH", "")
    path = python_path(run_dir, pinned=False, workdir=prepared.workdir, inherited=inherited)
    run_dir.submitit.mkdir(exist_ok=True)
    job_id = submit_callable(
        NodesJob(str(run_dir.root)),
        make_executor(run_dir.submitit, prepared.plan.sbatch, python=job_python()),
        workdir=prepared.workdir,
        environ=job_environment(os.environ, path),
    )
    say(f"job {job_id} runs preflight checks on {prepared.plan.nodes} nodes; Ctrl-C cancels it")
    try:
        return wait_for_record(run_dir, job_id, say)
    except BaseException:
        scancel(job_id)
        raise


def wait_for_record(run_dir: RunDir, job_id: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The result, once it is there; tells what the job waits for.

    Raises:
        RunError: the job ended without one.
    """
    told, gone = "", 0
    while not run_dir.preflight(1).exists():
        job = show_job(job_id)
        reason = f" ({job.reason})" if job.pending and job.reason else ""
        if (words := f"{job.state.lower()}{reason}") != told:
            told = words
            say(f"job {job_id}: {words}")
        gone = gone + 1 if job.known and not job.running and not job.pending else 0
        if gone > GONE_POLLS:
            lines = [
                line
                for path in sorted(run_dir.submitit.glob("*_log.out"))
                for line in last_lines(path, 3)
            ]
            said = f"{' | '.join(lines) or 'it said nothing'} ({run_dir.submitit})"
            raise RunError(f"job {job_id} ended without a result: {said}")
        time.sleep(POLL_S)
    return _record(run_dir)


def _record(run_dir: RunDir) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(run_dir.preflight(1).read_text())
    return value


def nodes_table(record: Mapping[str, Any]) -> Table:
    """What is not ok, failures first and once for all nodes that share it; then the good nodes."""
    findings = {
        node: [Finding.from_json(one) for one in found]
        for node, found in record["findings"].items()
    }
    nodes_of: dict[Finding, list[str]] = {}
    for node, found in findings.items():
        for one in found:
            if one.level is not Level.OK:
                nodes_of.setdefault(one, []).append(node)
    rows = []
    for one, nodes in sorted(nodes_of.items(), key=lambda item: item[0].level is not Level.FAIL):
        more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
        rows.append(replace(one, where=",".join(nodes[:MOST_NAMED]) + more))
    for node, found in findings.items():
        if any(one.level is Level.FAIL for one in found):
            continue
        fine = sum(one.level is Level.OK for one in found)
        measured = [one.evidence for one in found if one.id in ("ranks.reduce", "ranks.compute")]
        told = "; ".join([f"{fine} checks are ok", *measured])
        rows.append(Finding("", Level.OK, told, where=node))
    return findings_table(rows)


def closing_lines(record: Mapping[str, Any], folder: object) -> list[str]:
    """The result, the exclusion to paste, and where the rest is."""
    lines = [preflight_text(record)]
    if record["unfit"]:
        named = ",".join(record["unfit"])
        lines.append(f"to leave them out: --exclude={named}   (slurm.exclude={named})")
    return [*lines, f"all of it: {folder}"]
