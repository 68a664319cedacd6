"""Which checks there are for a subject, and how long each may take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from launcher.assess.checks_config import ID as VERDICT_ID
from launcher.assess.checks_config import look_at_config
from launcher.assess.checks_folders import (
    Folder,
    judge_folder,
    mount_of,
    parse_mounts,
    read_folder,
    read_mounts,
)
from launcher.assess.checks_host import (
    judge_modules,
    judge_python,
    judge_rdma,
    missing_modules,
    read_clock,
    read_containers,
    read_ports,
    read_versions,
)
from launcher.assess.checks_net import CONNECT_S, Endpoint, endpoints, look_at_endpoint
from launcher.assess.checks_nodes import judge_gpus, judge_partitions
from launcher.assess.checks_slurm import (
    judge_accounts,
    judge_controller,
    judge_settings,
    read_slurm,
)
from launcher.assess.finding import Finding, unknown
from launcher.assess.run import Check
from launcher.assess.subject import Subject

SLURM_S, FOLDER_S, HOST_S, CONFIG_S = 7.0, 4.0, 4.0, 7.5
"""Seconds that each kind may take; what it asks has a little less."""
SPARE_S = 0.5
TOTAL_S = 8.0
"""Everything together, so that the command starts, tells and ends within 10 s."""


def checks_of(subject: Subject) -> list[Check]:
    """All checks, in the order in which they are shown."""
    checks = []
    if subject.config is None or subject.config.cluster != "local":
        checks.append(Check("slurm.controller", lambda: look_at_slurm(subject), SLURM_S))
    checks += [_folder(folder, subject) for folder in subject.folders()]
    checks += _host(subject)
    checks += [_endpoint(one) for one in endpoints(subject.environ, wandb=subject.wandb_mode)]
    path = subject.config_path
    if path is not None:
        remedy = f"`python -m launcher plan {path}` takes the time that it needs"
        checks.append(Check(VERDICT_ID, lambda: look_at_config(path), CONFIG_S, remedy))
    return checks


def look_at_slurm(subject: Subject) -> Iterator[Finding]:
    """Everything that the controller and the database can tell."""
    if not subject.on_slurm:
        yield judge_controller(None)
        return
    reading = read_slurm(limit_s=SLURM_S - SPARE_S)
    yield judge_controller(reading)
    facts = reading.facts
    if facts is not None:
        yield from judge_settings(facts)
        yield judge_gpus(facts)
        yield from judge_partitions(facts, needed=subject.partitions, reasons=reading.reasons)
        yield judge_accounts(facts)
    else:
        said = "not known: the controller does not answer"
        yield from (unknown(f"slurm.{name}", said) for name in ("settings", "partitions", "gpus"))


def _folder(folder: Folder, subject: Subject) -> Check:
    def look() -> Iterable[Finding]:
        found = read_folder(folder.path, limit_s=FOLDER_S - SPARE_S)
        return [judge_folder(folder, found, on_nodes=subject.on_slurm)]

    return Check(folder.id, look, FOLDER_S)


def _host(subject: Subject) -> list[Check]:
    def modules() -> list[Finding]:
        return [
            judge_modules(os.environ, missing_modules(os.environ), needed=subject.loads_modules)
        ]

    def rdma() -> list[Finding]:
        return [judge_rdma(read_ports(), on_nodes=subject.on_slurm)]

    def python() -> list[Finding]:
        mount = mount_of(os.path.realpath(sys.prefix), parse_mounts(read_mounts()))
        found = read_versions()
        options = {"on_nodes": subject.on_slurm, "inside": subject.has_image}
        return [judge_python(sys.prefix, mount, found, **options)]

    return [
        Check("containers", lambda: read_containers(needed=subject.has_image), HOST_S),
        Check("infiniband", rdma, HOST_S),
        Check("modules", modules, HOST_S),
        Check("python", python, HOST_S),
        Check("clock", read_clock, HOST_S),
    ]


def _endpoint(endpoint: Endpoint) -> Check:
    # Resolving the name has no time limit of its own: with the check it is given up.
    limit_s = 2 * CONNECT_S
    return Check(endpoint.id, lambda: look_at_endpoint(endpoint), limit_s, endpoint.offline)
