"""Every variable that reaches the ranks, and from where it comes. Pure.

The rules over what reaches the ranks: what breaks the run, and what only costs. Pure.

The ranks' environment for the terminal. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal

from submitrain.config import RunConfig
from submitrain.config.placeholders import names_secret
from submitrain.launcher.checks.environment_rules import (
    CONFIGURED_RULES,
    OURS,
    OWN_NAMES,
    RULES,
    Rule,
    Setting,
)
from submitrain.launcher.submit.record import Redactor
from submitrain.launcher.submit.submit import job_environment

_MATTERS = re.compile(
    r"^(NCCL|RCCL|CUDA|NVIDIA|ROCR|HIP|HSA|TORCH|PYTORCH|GLOO|UCX|FI|OMP|MKL|KMP|OPENBLAS|HF|WANDB|"
    r"TRITON|XDG_CACHE|http|https|no|all|HTTP|HTTPS|NO|ALL)_|^(PATH|LD_LIBRARY_PATH|LD_PRELOAD|"
    r"PYTHON\w*|VIRTUAL_ENV|CONDA_PREFIX|HOME|TMPDIR|LOADEDMODULES|MASTER_\w+)$"
)
"""Names that bear on a training; the rest of a shell's environment is listed on request."""


class Origin(StrEnum):
    """Who sets a variable."""

    CONFIGURATION = "configuration"
    SHELL = "shell"
    """The shell that launches; sbatch passes it on."""
    DEFAULT = "default"
    """submitrain."""
    JOB = "job"
    """Slurm, when the job runs; the value is not known before."""


@dataclass(frozen=True)
class Variable:
    """One variable of the ranks; ``value`` None where it is known in the job only."""

    name: str
    value: str | None
    origin: Origin
    where: str
    """The key, or why it is set."""
    matters: bool = True

    def as_json(self) -> dict[str, str | bool | None]:
        """For ``--json``."""
        return {**asdict(self), "origin": str(self.origin)}


def ranks_environment(
    config: RunConfig, environ: Mapping[str, str], *, cluster: str, gpus: bool
) -> list[Variable]:
    """What ranks will have in their environment; secrets stay placeholders, or are redacted.

    ``environ`` is that of the process that launches. What ``slurm.setup`` and modules change is
    known in the job only.
    """
    found: dict[str, Variable] = {}
    redactor = Redactor.of(environ)
    for name, value in job_environment(environ, "").items():
        if name in environ and name not in ("PYTHONPATH", "PYTHONSAFEPATH"):
            shown = "(hidden)" if names_secret(name) else redactor.text(value)
            matters = bool(_MATTERS.match(name))
            found[name] = Variable(name, shown, Origin.SHELL, "this shell", matters)
    ours = _defaults(config, environ, cluster)
    for one in ours:
        if one.name not in found or one.name.startswith("PYTHON"):
            found[one.name] = one
    if cluster == "slurm":
        found |= {one.name: one for one in _of_the_job(gpus=gpus)}
    found |= {one.name: one for one in _configured(config)}
    order = list(Origin)
    return sorted(found.values(), key=lambda one: (order.index(one.origin), one.name))


def _configured(config: RunConfig) -> list[Variable]:
    slurm = config.slurm
    keys = {name: (value, f"slurm.env.{name}") for name, value in slurm.env.items()}
    keys["HF_HOME"] = (slurm.hf_home or "", "slurm.hf_home")
    keys["HF_TOKEN"] = (slurm.hf_token or "", "slurm.hf_token")
    keys["WANDB_API_KEY"] = (slurm.wandb_key or "", "slurm.wandb_key")
    given = set(slurm.env)
    return [
        Variable(name, value, Origin.CONFIGURATION, key)
        for name, (value, key) in keys.items()
        if value or name in given
    ]


def _defaults(config: RunConfig, environ: Mapping[str, str], cluster: str) -> list[Variable]:
    kept = environ.get("PYTHONPATH")
    path = "<run>/code:..." + (f":{kept}" if kept else "")
    found = [
        Variable("PYTHONPATH", path, Origin.DEFAULT, "the pinned code, then this shell's"),
        Variable("PYTHONSAFEPATH", "1", Origin.DEFAULT, "no train.py of yours hides ours"),
        Variable("PYTHONUNBUFFERED", "1", Origin.DEFAULT, "logs are complete after a crash"),
        Variable("SUBMITRAIN_*", None, Origin.DEFAULT, "run folder, attempt, job"),
    ]
    cpus = config.slurm.cpus_per_task if cluster == "slurm" else None
    threads = str(cpus) if cpus else None
    why = "slurm.cpus_per_task" if cpus else "the rank's share of the CPUs"
    found.append(Variable("OMP_NUM_THREADS", threads, Origin.DEFAULT, why))
    wanted = config.distributed.interface
    if wanted is not None and config.slurm.nodes.max > 1:
        for name, value in (("GLOO_SOCKET_IFNAME", wanted), ("NCCL_SOCKET_IFNAME", f"={wanted}")):
            found.append(Variable(name, value, Origin.DEFAULT, "distributed.interface"))
    return found


def _of_the_job(*, gpus: bool) -> list[Variable]:
    found = [Variable("SLURM_*", None, Origin.JOB, "Slurm; bindings of the batch step are removed")]
    if gpus:
        why = "Slurm: the node's GPUs of this job; a rank takes that of its local rank"
        found.append(Variable("CUDA_VISIBLE_DEVICES", None, Origin.JOB, why))
    return found


SHELL = "the environment of this shell"


@dataclass(frozen=True)
class Complaint:
    """One variable that does harm."""

    name: str
    value: str
    verdict: Literal["error", "warning"]
    reason: str
    source: str
    origin: str
    """``slurm.env``, or the shell that launches."""

    @property
    def text(self) -> str:
        """For one line of the terminal."""
        where = f"slurm.env.{self.name}" if self.origin == "slurm.env" else self.name
        told = f"{where}: {self.value}" if self.value else f"{where} (empty)"
        who = "" if self.origin == "slurm.env" else f" ({self.origin})"
        return f"{told}{who}: {self.reason} [{self.source}]"

    def as_json(self) -> dict[str, str]:
        """For ``--json``."""
        return asdict(self)


def lint(
    configured: Mapping[str, str], inherited: Mapping[str, str], setting: Setting
) -> list[Complaint]:
    """Complaints about ``slurm.env`` and the inherited environment, errors first.

    What the configuration sets hides what the shell has under the same name.
    """
    reaching = {**inherited, **configured}
    found = [
        *_own_names(configured),
        *_apply(CONFIGURED_RULES, configured, configured, setting, "slurm.env"),
        *_apply(RULES, configured, reaching, setting, "slurm.env"),
        *_apply(
            RULES,
            {name: value for name, value in inherited.items() if name not in configured},
            reaching,
            setting,
            SHELL,
        ),
    ]
    return sorted(found, key=lambda one: one.verdict != "error")


def _apply(
    rules: Iterable[Rule],
    variables: Mapping[str, str],
    reaching: Mapping[str, str],
    setting: Setting,
    origin: str,
) -> Iterator[Complaint]:
    for rule in rules:
        value = variables.get(rule.variable)
        if value is None or "${" in value or not rule.applies(value, reaching, setting):
            continue
        yield Complaint(rule.variable, value, rule.verdict, rule.reason, rule.source, origin)


def _own_names(configured: Mapping[str, str]) -> Iterator[Complaint]:
    for name, value in configured.items():
        if OWN_NAMES.match(name):
            reason = "Slurm and submitrain set variables of this name themselves: remove it"
            yield Complaint(name, value, "error", reason, OURS, "slurm.env")


_WIDTH = 28
_VALUE = 60
_TITLES = {
    Origin.CONFIGURATION: "from the configuration",
    Origin.SHELL: "from this shell",
    Origin.DEFAULT: "from submitrain",
    Origin.JOB: "from Slurm, in the job",
}


def in_short(variables: Sequence[Variable]) -> str:
    """One line for the plan."""
    count = dict.fromkeys(Origin, 0)
    for one in variables:
        count[one.origin] += 1
    mattering = sum(one.matters for one in variables if one.origin is Origin.SHELL)
    return (
        f"{count[Origin.CONFIGURATION]} variables from the configuration, "
        f"{count[Origin.SHELL]} from this shell ({mattering} that matter): `plan --env` lists them"
    )


def listing(variables: Sequence[Variable], config: RunConfig) -> str:
    """All that matters by origin, the rest by name; then what the job itself may change."""
    lines = ["environment of the ranks"]
    for origin in Origin:
        shown = [one for one in variables if one.origin is origin and one.matters]
        rest = [one.name for one in variables if one.origin is origin and not one.matters]
        if shown or rest:
            lines.append(f"  {_TITLES[origin]}")
        lines += [_row(one) for one in shown]
        if rest:
            lines.append(f"    and {len(rest)} more: {', '.join(rest)}")
    changes = [f"module load {' '.join(config.slurm.modules)}"] if config.slurm.modules else []
    changes += config.slurm.setup
    if changes:
        lines.append("  run in the job before all this, and may change it")
        lines += [f"    {line}" for line in changes]
    return "\n".join(lines)


def _row(one: Variable) -> str:
    value = "(known in the job)" if one.value is None else one.value or "(empty)"
    short = value if len(value) <= _VALUE else f"{value[: _VALUE - 3]}..."
    where = "" if one.origin is Origin.SHELL else f"  [{one.where}]"
    return f"    {one.name:<{_WIDTH}} {short}{where}"
