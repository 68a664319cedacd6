"""Which checks there are for a subject, and how long each may take.

Runs checks at once, each with its own time limit. An edge: threads and the clock.

A check that hangs is left behind in a daemon thread, which keeps no process from ending; what it
may hang on (a file system, a command) it has in a child process.

What is assessed: folders, services and needs, by a configuration or by the defaults.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitrain.config import RunConfig
from submitrain.launcher.checks.finding import Finding, unknown
from submitrain.launcher.checks.folders import (
    Folder,
    judge_folder,
    mount_of,
    parse_mounts,
    read_folder,
    read_mounts,
)
from submitrain.launcher.checks.host import (
    CONNECT_S,
    Endpoint,
    endpoints,
    judge_modules,
    judge_python,
    judge_rdma,
    look_at_endpoint,
    missing_modules,
    read_clock,
    read_containers,
    read_ports,
    read_versions,
)
from submitrain.launcher.checks.slurm import ID as VERDICT_ID
from submitrain.launcher.checks.slurm import (
    judge_accounts,
    judge_controller,
    judge_gpus,
    judge_partitions,
    judge_settings,
    look_at_config,
    read_slurm,
)
from submitrain.launcher.plan.config import load_config
from submitrain.launcher.submit.submit import slurm_is_configured
from submitrain.slurm.client import ask


@dataclass(frozen=True)
class Check:
    """One look at something; ``id`` names the finding when it does not answer in time."""

    id: str
    look: Callable[[], Iterable[Finding]]
    limit_s: float
    remedy: str = ""


def run_checks(checks: Sequence[Check], *, deadline: float = float("inf")) -> list[Finding]:
    """The findings of all checks, in their order; ``deadline`` in seconds of time.monotonic."""
    began = time.monotonic()
    running = [(check, *_start(check)) for check in checks]
    findings: list[Finding] = []
    for check, thread, found in running:
        limit = min(began + check.limit_s, deadline)
        thread.join(max(0.0, limit - time.monotonic()))
        if thread.is_alive():
            said = f"no answer within {limit - began:.1f} s"
            findings.append(unknown(check.id, said, check.remedy))
        else:
            findings += found
    return findings


def _start(check: Check) -> tuple[threading.Thread, list[Finding]]:
    found: list[Finding] = []

    def look() -> None:
        try:
            found.extend(list(check.look()))
        except Exception as error:  # one broken check must not cost the answers of the others
            found.append(unknown(check.id, f"it could not be looked at: {error!r}", check.remedy))

    thread = threading.Thread(target=look, name=check.id, daemon=True)
    thread.start()
    return thread, found


_PING_S = 2.0


@dataclass(frozen=True)
class Subject:
    """What a training here would use; ``config`` None for one with nothing but defaults."""

    config_path: str | None
    config: RunConfig | None
    on_slurm: bool
    """Whether jobs run on other machines than this one."""
    environ: Mapping[str, str]
    """This process's environment, with what the configuration gives to ranks."""

    @property
    def has_image(self) -> bool:
        """Whether ranks run in a container."""
        return self.config is not None and self.config.slurm.container_image is not None

    @property
    def loads_modules(self) -> bool:
        """Whether a setup command loads environment modules."""
        if self.config is not None and self.config.slurm.modules:
            return True
        setup = self.config.slurm.setup if self.config else ()
        return any(line.strip().startswith(("module ", "ml ")) for line in setup)

    @property
    def partitions(self) -> tuple[str, ...]:
        """Partitions that the configuration names."""
        named = self.config.slurm.partition if self.config else None
        return tuple(name for name in (named or "").split(",") if name)

    @property
    def wandb_mode(self) -> str | None:
        """W&B's mode, empty for its own choice; None where W&B is not used."""
        wandb = self.config.wandb if self.config else None
        return None if wandb is None or not wandb.enabled else wandb.mode or ""

    def folders(self) -> list[Folder]:
        """Folders that are written to."""
        runs = self.config.runs_dir if self.config else "runs"
        found = [Folder("folder.runs", _absolute(runs), "runs_dir")]
        checkpoints = self.config.checkpoint.checkpoint_dir if self.config else None
        if checkpoints:
            key = "checkpoint.checkpoint_dir"
            found.append(Folder("folder.checkpoints", _absolute(checkpoints), key))
        cache = self.environ.get("HF_HOME") or "~/.cache/huggingface"
        return [*found, Folder("folder.hf_cache", _absolute(cache), "slurm.hf_home (HF_HOME)")]


def load_subject(config: str | None) -> Subject:
    """Read the configuration, if there is one, and see whether Slurm's commands are here.

    Raises:
        UserError: the configuration is wrong.
    """
    loaded = None if config is None else load_config(config).config
    wanted = "auto" if loaded is None else loaded.cluster
    on_slurm = wanted == "slurm" or (wanted == "auto" and _has_slurm())
    return Subject(config, loaded, on_slurm, {**os.environ, **_given(loaded)})


def _has_slurm() -> bool:
    """Whether Slurm is meant to work here; a slurm.conf may also come from its controller."""
    if shutil.which("scontrol") is None:
        return False
    return slurm_is_configured() or ask(["scontrol", "ping"], timeout_s=_PING_S).code == 0


def _given(config: RunConfig | None) -> dict[str, str]:
    """What the configuration sets for ranks; placeholders, which may be secrets, are left out."""
    if config is None:
        return {}
    given = {**config.slurm.env, "HF_HOME": config.slurm.hf_home or ""}
    return {name: value for name, value in given.items() if value and "${" not in value}


def _absolute(path: str) -> Path:
    """Spelled out without touching the file system."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100


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
