"""``python -m launcher assess``: run all checks of this host and cluster at once, in under 10 s."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from submitrain.config import RunConfig
from submitrain.errors import UserError
from submitrain.launcher.checks import folders, host, slurm
from submitrain.launcher.checks.finding import (
    Check,
    Finding,
    Level,
    fail,
    once,
    run_checks,
    unknown,
    worst,
)
from submitrain.launcher.checks.node_software import package_versions
from submitrain.launcher.checks.node_system import read_ports
from submitrain.launcher.checks.render import findings_page, findings_table, summary
from submitrain.launcher.cli.commands import log_to_stderr
from submitrain.launcher.plan.config import load_config
from submitrain.launcher.plan.prepare import prepare
from submitrain.launcher.submit.submit import slurm_is_configured
from submitrain.monitor.status import console
from submitrain.slurm.client import ping

SLURM_S, FOLDER_S, HOST_S, CONFIG_S = 7.0, 4.0, 4.0, 7.5
"""Seconds that each kind may take; what it asks has a little less."""
SPARE_S = 0.5
TOTAL_S = 8.0
"""Everything together, so that the command starts, tells and ends within 10 s."""
_LOAD_S = 3.0
_PAGE_S = 0.8
"""Seconds for reading the configuration, and for writing the page after everything else."""
_PING_S = 2.0


def main(options: argparse.Namespace) -> int:
    """Assess, and tell; 1 if something fails, else 0.

    Raises:
        UserError: the configuration or the file for the page is wrong.
    """
    log_to_stderr()
    if options.nodes is not None:
        return _nodes(options)
    if options.quick:
        raise UserError(
            "--quick: expected with --nodes N, got it alone; add --nodes, or leave it out"
        )
    began, at = time.monotonic(), time.time()
    findings = assess(options.config, deadline=began + TOTAL_S)
    took_s, name = time.monotonic() - began, socket.gethostname()
    level = worst(findings)
    if options.json:
        told = [one.as_json() for one in findings]
        head = {"host": name, "at": at, "took_s": round(took_s, 3), "level": str(level)}
        print(json.dumps({**head, "findings": told}, indent=2))
    else:
        console().print(findings_table(findings))
        print(f"\n{name}: {summary(findings)}")
    if options.html is not None:
        _write_page(options.html, findings_page(findings, host=name, at=at, took_s=took_s))
    return 1 if level is Level.FAIL else 0


def _nodes(options: argparse.Namespace) -> int:
    """Check nodes by a job of its own; 1 if one of them is unfit."""
    from submitrain.launcher.checks.assess_nodes import assess_nodes, closing_lines, nodes_table

    if options.html is not None:
        raise UserError("--html: expected without --nodes, got both; use --json with --nodes")
    record, folder = assess_nodes(
        options.nodes,
        options.config,
        quick=options.quick,
        say=lambda text: print(text, file=sys.stderr),
    )
    if options.json:
        print(json.dumps({**record, "folder": str(folder)}, indent=2))
    else:
        console().print(nodes_table(record))
        print("\n" + "\n".join(closing_lines(record, folder)))
    return 1 if record["level"] == str(Level.FAIL) else 0


def _write_page(path: str, text: str) -> None:
    try:
        late = _within(_PAGE_S, "--html", lambda: Path(path).write_text(text))
    except OSError as error:
        raise UserError(
            f"--html: expected a file that can be written, got {path} ({error.strerror})"
        ) from error
    if late:
        raise UserError(f"--html: {path} could not be written within {_PAGE_S:g} s")


def _within(limit_s: float, id: str, act: Callable[[], object], remedy: str = "") -> list[Finding]:
    """Do something that may hang; a finding when it did not end in time, its errors raised here."""
    errors: list[UserError | OSError] = []

    def run() -> list[Finding]:
        try:
            act()
        except (UserError, OSError) as error:
            errors.append(error)
        return []

    late = run_checks([Check(id, run, limit_s, remedy)])
    for error in errors:
        raise error
    return late


def assess(config: str | None, *, deadline: float) -> list[Finding]:
    """All findings, at the latest at ``deadline`` (of time.monotonic).

    Raises:
        UserError: the configuration is wrong.
    """
    loaded: list[Subject] = []
    remedy = "the file system that it or PATH is on may hang; try without --config"
    late = _within(_LOAD_S, "config", lambda: loaded.append(load_subject(config)), remedy)
    subject = loaded[0] if loaded else Subject(None, None, True, dict(os.environ))
    return [*late, *run_checks(checks_of(subject), deadline=deadline)]


@dataclass(frozen=True)
class Subject:
    """What is assessed: a run's configuration, or the defaults where ``config`` is None."""

    config_path: str | None
    config: RunConfig | None
    on_slurm: bool
    """Whether jobs run on other machines than this one."""
    environ: Mapping[str, str]
    """This process's environment, with what the configuration gives to ranks."""


def load_subject(path: str | None) -> Subject:
    """Read the configuration, if there is one, and see whether Slurm's commands are here.

    Raises:
        UserError: the configuration is wrong.
    """
    config = None if path is None else load_config(path).config
    wanted = "auto" if config is None else config.cluster
    on_slurm = wanted == "slurm" or (wanted == "auto" and _has_slurm())
    job = None if config is None else config.slurm
    given = {} if job is None else {**job.env, "HF_HOME": job.hf_home or ""}
    # Placeholders are left out: they may be secrets.
    plain = {name: value for name, value in given.items() if value and "${" not in value}
    return Subject(path, config, on_slurm, {**os.environ, **plain})


def _has_slurm() -> bool:
    """Whether Slurm is meant to work here; a slurm.conf may also come from its controller."""
    if shutil.which("scontrol") is None:
        return False
    return slurm_is_configured() or ping(timeout_s=_PING_S).code == 0


def checks_of(subject: Subject) -> list[Check]:
    """All checks, in the order in which they are shown."""
    reading = once(lambda: slurm.read_slurm(limit_s=SLURM_S - SPARE_S))
    checks: list[Check] = []
    if subject.config is None or subject.config.cluster != "local":
        checks.append(Check("slurm.controller", lambda: check_slurm(subject, reading), SLURM_S))
    for folder in folders_of(subject):
        checks.append(Check(folder.id, partial(_check_folder, folder, subject), FOLDER_S))
    checks += _host_checks(subject)
    path = subject.config_path
    if path is not None:
        remedy = f"`python -m launcher plan {path}` takes the time that it needs"
        run = partial(check_config, path, reading if subject.on_slurm else None)
        checks.append(Check(slurm.SCHEDULABILITY_ID, run, CONFIG_S, remedy))
    return checks


def check_slurm(subject: Subject, reading: Callable[[], slurm.SlurmReading]) -> Iterator[Finding]:
    """Everything that the controller and the database can tell."""
    if not subject.on_slurm:
        yield slurm.judge_controller(None)
        return
    said = reading()
    yield slurm.judge_controller(said)
    if said.facts is None:
        why = "not known: the controller does not answer"
        yield from (unknown(f"slurm.{name}", why) for name in ("settings", "partitions", "gpus"))
        return
    named = subject.config.slurm.partition if subject.config else None
    needed = [name for name in (named or "").split(",") if name]
    yield from slurm.judge_settings(said.facts)
    yield slurm.judge_gpus(said.facts)
    yield from slurm.judge_partitions(said.facts, needed=needed, reasons=said.reasons)
    yield slurm.judge_accounts(said.facts)


def folders_of(subject: Subject) -> list[folders.Folder]:
    """Folders that are written to."""

    def absolute(path: str) -> Path:
        return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - touches nothing

    config = subject.config
    runs_dir = config.runs_dir if config else "runs"
    found = [folders.Folder("folder.runs", absolute(runs_dir), "runs_dir")]
    if config is not None and (path := config.checkpoint.checkpoint_dir):
        key = "checkpoint.checkpoint_dir"
        found.append(folders.Folder("folder.checkpoints", absolute(path), key))
    cache = subject.environ.get("HF_HOME") or "~/.cache/huggingface"
    return [*found, folders.Folder("folder.hf_cache", absolute(cache), "slurm.hf_home (HF_HOME)")]


def _check_folder(folder: folders.Folder, subject: Subject) -> Finding:
    found = folders.read_folder(folder.path, limit_s=FOLDER_S - SPARE_S)
    return folders.judge_folder(folder, found, on_nodes=subject.on_slurm)


def _host_checks(subject: Subject) -> list[Check]:
    config, on_nodes = subject.config, subject.on_slurm
    has_image = config is not None and config.slurm.container_image is not None
    loads_modules = config is not None and (
        bool(config.slurm.modules)
        or any(line.strip().startswith(("module ", "ml ")) for line in config.slurm.setup)
    )
    wandb = config.wandb if config else None
    wandb_mode = None if wandb is None or not wandb.enabled else wandb.mode or ""

    def python() -> Finding:
        mount = folders.mount_of(os.path.realpath(sys.prefix), folders.read_mounts())
        versions = package_versions()
        return host.judge_python(sys.prefix, mount, versions, on_nodes=on_nodes, inside=has_image)

    checks = [
        Check("containers", lambda: host.read_containers(needed=has_image), HOST_S),
        Check("infiniband", lambda: host.judge_rdma(read_ports(), on_nodes=on_nodes), HOST_S),
        Check("modules", lambda: host.check_modules(os.environ, needed=loads_modules), HOST_S),
        Check("python", python, HOST_S),
        Check("clock", host.read_clock, HOST_S),
    ]
    for one in host.endpoints(subject.environ, wandb=wandb_mode):
        # Resolving the name has no time limit of its own: with the check it is given up.
        checks.append(Check(one.id, partial(host.connect, one), 2 * host.CONNECT_S, one.offline))
    return checks


def check_config(path: str, reading: Callable[[], slurm.SlurmReading] | None = None) -> Finding:
    """Plan the configuration, and ask Slurm about it; refusals of the plan are findings."""
    try:
        prepared = prepare(path, plan_only=True)
        found = prepared.schedulability(None if reading is None else reading().facts)
    except UserError as error:
        said = "; ".join(str(error).splitlines())
        again = f"correct it; `python -m launcher plan {path}` shows it again"
        return fail(slurm.SCHEDULABILITY_ID, said, again)
    return slurm.judge_schedulability(found, path)
