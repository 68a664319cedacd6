"""Every variable that reaches the ranks, and from where it comes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from launcher.record import Redactor
from launcher.submit import job_environment
from train.config import RunConfig
from train.config.placeholders import names_secret

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
