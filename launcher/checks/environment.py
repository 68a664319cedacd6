"""The environment of the ranks: which variables do harm, and where every variable comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from submitrain.config import RunConfig
from submitrain.config.placeholders import names_secret
from submitrain.launcher.checks.finding import Finding, Level
from submitrain.launcher.plan.memory import this_machine
from submitrain.launcher.submit.record import Redactor
from submitrain.launcher.submit.submit import job_environment

if TYPE_CHECKING:
    from submitrain.launcher.plan.plan import Plan

SHELL = "the environment of this shell"
_MATTERS = re.compile(
    r"^(NCCL|RCCL|CUDA|NVIDIA|ROCR|HIP|HSA|TORCH|PYTORCH|GLOO|UCX|FI|OMP|MKL|KMP|OPENBLAS|HF|WANDB|"
    r"TRITON|XDG_CACHE|http|https|no|all|HTTP|HTTPS|NO|ALL)_|^(PATH|LD_LIBRARY_PATH|LD_PRELOAD|"
    r"PYTHON\w*|VIRTUAL_ENV|CONDA_PREFIX|HOME|TMPDIR|LOADEDMODULES|MASTER_\w+)$"
)
"""Names that bear on a training; the rest of a shell's environment is listed on request."""
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # libyaml, where PyYAML has it
_OWN_NAMES = re.compile(r"^(SUBMITRAIN|SLURM|SLURMD|SRUN|SBATCH|SUBMITIT|PMI|PMIX)_")
"""Names that Slurm and we give; in ``slurm.env`` they would mislead srun or a rank."""


@dataclass(frozen=True)
class Setting:
    """What a rule may depend on besides the variable."""

    on_gpu: bool = True
    nodes: int = 1
    ranks_per_node: int = 1
    cpus_per_rank: int | None = None
    """None where nobody knows."""
    interface: str | None = None
    """``distributed.interface``."""

    @classmethod
    def of(cls, plan: Plan, config: RunConfig) -> Setting:
        """That of a launch; on this machine ranks share its CPUs."""
        cpus = config.slurm.cpus_per_task
        if plan.cluster == "local":
            cpus = max(1, this_machine().cpus // plan.world_size)
        return cls(
            on_gpu=plan.gpus_per_node > 0,
            nodes=plan.nodes if plan.cluster == "slurm" else 1,
            ranks_per_node=plan.ranks_per_node,
            cpus_per_rank=cpus,
            interface=config.distributed.interface,
        )


def _prefix_of_a_name(value: str, setting: Setting) -> bool:
    exact = not value or value[0] in "^=" or value in ("lo", "lo0")
    return setting.nodes > 1 and not exact


def _differs_from_distributed_interface(value: str, setting: Setting) -> bool:
    names = {one.strip() for one in (setting.interface or "").split(",")}
    return setting.interface is not None and value.lstrip("=") not in names


def _hides_devices(value: str, setting: Setting) -> bool:
    count = 0 if value.strip() in ("", "-1") else len(value.split(","))
    return count < setting.ranks_per_node


def _more_threads_than_cpus(value: str, setting: Setting) -> bool:
    threads = int(value) if value.isdigit() else 0
    return setting.cpus_per_rank is not None and threads > setting.cpus_per_rank


def _split_size_and_segments(value: str, setting: Setting) -> bool:
    words = value.replace(" ", "").lower()
    return "expandable_segments:true" in words and "max_split_size_mb" in words


def _ring_or_tree(value: str, setting: Setting) -> bool:
    names = {name.strip().lower() for name in re.split(r"[,;]", value)}
    return bool(value) and not value.startswith("^") and names <= {"ring", "tree"}


CONDITIONS: Mapping[str, Callable[[str, Setting], bool]] = {
    "gpu": lambda value, setting: setting.on_gpu,
    "set": lambda value, setting: value != "",
    "yes": lambda value, setting: value.strip().lower() in ("1", "true", "yes", "on", "y"),
    "no": lambda value, setting: value.strip().lower() in ("0", "false", "no", "off", "n"),
    "loopback_between_nodes": lambda value, setting: (
        setting.nodes > 1 and value.lstrip("=") in ("lo", "lo0")
    ),
    "asks_for_ll128": lambda value, setting: not value.startswith("^") and "ll128" in value.lower(),
    "asks_for_another_protocol": lambda value, setting: (
        bool(value) and not value.startswith("^") and "ll128" not in value.lower()
    ),
    "one_file_for_all": lambda value, setting: bool(value) and "%p" not in value,
    "ring_or_tree": _ring_or_tree,
    "prefix_of_a_name": _prefix_of_a_name,
    "differs_from_distributed_interface": _differs_from_distributed_interface,
    "hides_devices": _hides_devices,
    "more_threads_than_cpus": _more_threads_than_cpus,
    "split_size_and_segments": _split_size_and_segments,
}
"""What ``if`` of environment_rules.yaml may say; ``configured``: only for ``slurm.env``."""


@dataclass(frozen=True)
class Rule:
    """When some variables do harm, and why, with what to do."""

    variables: tuple[str, ...]
    conditions: tuple[str, ...]
    level: Level
    why: str
    source: str

    def applies(self, value: str, setting: Setting, *, configured: bool) -> bool:
        """Whether a value does harm; ``configured``: ``slurm.env`` sets it, not the shell."""
        return all(
            value.strip().lower() == one[1:]
            if one.startswith("=")
            else configured
            if one == "configured"
            else CONDITIONS[one](value, setting)
            for one in self.conditions
        )


@cache
def rules() -> tuple[Rule, ...]:
    """The rules of environment_rules.yaml."""
    path = Path(__file__).with_name("environment_rules.yaml")
    rows: list[dict[str, Any]] = yaml.load(path.read_text(), _LOADER)
    return tuple(
        Rule(
            variables=tuple(row["variables"].split()),
            conditions=tuple(row["if"].split()),
            level=Level.FAIL if row.get("level") == "error" else Level.WARN,
            why=row["why"],
            source=row["source"],
        )
        for row in rows
    )


def lint(
    configured: Mapping[str, str], inherited: Mapping[str, str], setting: Setting
) -> list[Finding]:
    """What does harm in ``slurm.env`` and the inherited environment; what breaks the run first.

    What the configuration sets hides what the shell has under the same name.
    """
    found = []
    for name, value in configured.items():
        if _OWN_NAMES.match(name):
            why = "Slurm and submitrain set variables of this name themselves: remove it"
            found.append(_issue(name, value, "slurm.env", Level.FAIL, why, "docs/preflight.md"))
    for where, values in (("slurm.env", configured), (SHELL, inherited)):
        for rule in rules():
            for name in rule.variables:
                hidden = where == SHELL and name in configured
                if name not in values or hidden or "${" in values[name]:
                    continue
                if rule.applies(values[name], setting, configured=where != SHELL):
                    issue = _issue(name, values[name], where, rule.level, rule.why, rule.source)
                    found.append(issue)
    return sorted(found, key=lambda one: one.level is not Level.FAIL)


def _issue(name: str, value: str, where: str, level: Level, why: str, source: str) -> Finding:
    id, who = (name, f" ({where})") if where == SHELL else (f"{where}.{name}", "")
    return Finding(id, level, f"{value or '(empty)'}{who}: {why} [{source}]", where=where)


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
    for one in _defaults(config, environ, cluster):
        if one.name not in found or one.name.startswith("PYTHON"):
            found[one.name] = one
    if cluster == "slurm":
        why = "Slurm; bindings of the batch step are removed"
        found["SLURM_*"] = Variable("SLURM_*", None, Origin.JOB, why)
    if cluster == "slurm" and gpus:
        name = "CUDA_VISIBLE_DEVICES"
        why = "Slurm: the node's GPUs of this job; a rank takes that of its local rank"
        found[name] = Variable(name, None, Origin.JOB, why)
    slurm = config.slurm
    for name, given, key in (
        *((name, value, f"slurm.env.{name}") for name, value in slurm.env.items()),
        ("HF_HOME", slurm.hf_home, "slurm.hf_home"),
        ("HF_TOKEN", slurm.hf_token, "slurm.hf_token"),
        ("WANDB_API_KEY", slurm.wandb_key, "slurm.wandb_key"),
    ):
        if given or key.startswith("slurm.env."):
            found[name] = Variable(name, given, Origin.CONFIGURATION, key)
    order = list(Origin)
    return sorted(found.values(), key=lambda one: (order.index(one.origin), one.name))


def _defaults(config: RunConfig, environ: Mapping[str, str], cluster: str) -> list[Variable]:
    """What submitrain sets where nobody else does."""
    kept = environ.get("PYTHONPATH")
    path = "<run>/code:..." + (f":{kept}" if kept else "")
    cpus = config.slurm.cpus_per_task if cluster == "slurm" else None
    threads, why = (str(cpus), "slurm.cpus_per_task") if cpus else (None, "its share of the CPUs")
    values = [
        ("PYTHONPATH", path, "the pinned code, then this shell's"),
        ("PYTHONSAFEPATH", "1", "no train.py of yours hides ours"),
        ("PYTHONUNBUFFERED", "1", "logs are complete after a crash"),
        ("SUBMITRAIN_*", None, "run folder, attempt, job"),
        ("OMP_NUM_THREADS", threads, why),
    ]
    interface = config.distributed.interface
    if interface is not None and config.slurm.nodes.max > 1:
        values.append(("GLOO_SOCKET_IFNAME", interface, "distributed.interface"))
        values.append(("NCCL_SOCKET_IFNAME", f"={interface}", "distributed.interface"))
    return [Variable(name, value, Origin.DEFAULT, why) for name, value, why in values]


def in_short(variables: Sequence[Variable]) -> str:
    """One line for the plan."""
    configured = sum(one.origin is Origin.CONFIGURATION for one in variables)
    shell = [one for one in variables if one.origin is Origin.SHELL]
    return (
        f"{configured} variables from the configuration, {len(shell)} from this shell "
        f"({sum(one.matters for one in shell)} that matter): `plan --env` lists them"
    )


def listing(variables: Sequence[Variable], config: RunConfig) -> str:
    """All that matters by origin, the rest by name; then what the job itself may change."""
    lines = ["environment of the ranks"]
    for origin, title in (
        (Origin.CONFIGURATION, "from the configuration"),
        (Origin.SHELL, "from this shell"),
        (Origin.DEFAULT, "from submitrain"),
        (Origin.JOB, "from Slurm, in the job"),
    ):
        here = [one for one in variables if one.origin is origin]
        rest = [one.name for one in here if not one.matters]
        if here:
            lines.append(f"  {title}")
        for one in here:
            if one.matters:
                value = "(known in the job)" if one.value is None else one.value or "(empty)"
                short = value if len(value) <= 60 else f"{value[:57]}..."
                where = "" if origin is Origin.SHELL else f"  [{one.where}]"
                lines.append(f"    {one.name:<28} {short}{where}")
        if rest:
            lines.append(f"    and {len(rest)} more: {', '.join(rest)}")
    changes = [f"module load {' '.join(config.slurm.modules)}"] if config.slurm.modules else []
    changes += config.slurm.setup
    if changes:
        lines.append("  run in the job before all this, and may change it")
        lines += [f"    {line}" for line in changes]
    return "\n".join(lines)
