"""Everything before the first write of a launch: load, check, choose the cluster, plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.inputs import check_inputs
from launcher.submit import Cluster, choose_cluster, slurm_problem
from train.errors import ClusterError, UserError

if TYPE_CHECKING:
    from launcher.config import LoadedConfig
    from launcher.plan import Plan
    from launcher.verdict.judge import Verdict
    from train.config import RunConfig


@dataclass(frozen=True)
class Prepared:
    """A launch that could go: configuration, where it goes and what will be asked for there."""

    loaded: LoadedConfig
    cluster: Cluster
    plan: Plan
    workdir: Path

    @property
    def runs_dir(self) -> Path:
        """Folder for run folders, absolute."""
        return self.workdir / Path(self.loaded.config.runs_dir).expanduser()

    def verdict(self) -> Verdict | None:
        """What Slurm would make of it now, asked anew; None where it would not run under Slurm."""
        if self.cluster.name != "slurm" or slurm_problem():
            return None
        from launcher.plan import sbatch_text
        from launcher.verdict.queue import expect
        from launcher.verdict.request import request_of

        script = sbatch_text(self.plan, self.runs_dir / "submitit")
        return expect(request_of(self.plan.sbatch), script)


def prepare(
    source: str | Path | Mapping[str, Any] | RunConfig,
    *,
    overrides: Sequence[str] = (),
    cluster: str | None = None,
    changes: Mapping[str, Any] | None = None,
    plan_only: bool = False,
) -> Prepared:
    """Everything before the first write: load and check the configuration, choose, plan.

    With ``plan_only``, Slurm need not be here: it is planned for as for a cluster with GPUs.

    Raises:
        UserError: the input is wrong; one line for every problem.
    """
    from launcher.config import load_config
    from launcher.plan import make_plan
    from train.config.load import secret_environment

    loaded = load_config(source, overrides, changes)
    # Only to learn here, and not from a failed run, that a variable is missing.
    secret_environment(loaded.config, os.environ)
    workdir = Path.cwd()
    check_inputs(loaded.config, workdir)
    wanted = cluster or loaded.config.cluster
    if plan_only and wanted == "slurm" and slurm_problem():
        chosen = Cluster("slurm", "asked for; none answers here, so one with GPUs is assumed")
        plan = make_plan(loaded, cluster="slurm", gpus_available=True)
    else:
        chosen = choose_cluster(wanted)
        plan = make_plan(loaded, cluster=chosen.name, gpus_available=gpus_available(chosen))
    return Prepared(loaded, chosen, _with_deadlines(plan, loaded.config, chosen), workdir)


def _with_deadlines(plan: Plan, config: RunConfig, cluster: Cluster) -> Plan:
    """The plan with what its deadlines mean; refuses those that cannot be met."""
    from launcher.deadlines import deadline_cautions, deadline_problems
    from monitor.slurm import kill_wait_s

    size = plan.estimates.checkpoint_bytes
    if problems := list(deadline_problems(config, size)):
        raise UserError("\n".join(problems))
    granted = kill_wait_s() if cluster.name == "slurm" else None
    cautions = deadline_cautions(config, size, granted)
    return replace(plan, warnings=(*plan.warnings, *cautions))


def gpus_available(cluster: Cluster) -> bool:
    """Whether jobs of this cluster can ask for GPUs; no torch needed to know.

    Raises:
        ClusterError: Slurm does not say; a guess would start a job without its GPUs.
    """
    if cluster.name == "local":
        return os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in {"", "-1"} and any(
            Path("/dev").glob("nvidia[0-9]*")
        )
    from monitor.slurm import ask

    answer = ask(["sinfo", "--noheader", "--format=%G"])
    if answer.code != 0:
        raise ClusterError(
            "cluster: sinfo does not say whether this cluster has GPUs "
            f"({answer.error or 'no answer'}); try again when Slurm answers"
        )
    return "gpu" in answer.out
