"""Everything before the first write of a launch: load, check, choose the cluster, plan."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitrain.config import RunConfig
from submitrain.config.resolve import SECRET_VARIABLES, secret_environment
from submitrain.errors import ClusterError, ConfigError, UserError
from submitrain.launcher.checks.environment import Setting, Variable, lint, ranks_environment
from submitrain.launcher.checks.finding import Level
from submitrain.launcher.container import Runtime, container_step, installed_runtimes
from submitrain.launcher.container_paths import path_problems
from submitrain.launcher.plan.config import LoadedConfig, load_config
from submitrain.launcher.plan.deadlines import deadline_problems, deadline_warnings
from submitrain.launcher.plan.inputs import check_inputs
from submitrain.launcher.plan.plan import Plan, make_plan
from submitrain.launcher.plan.sbatch import script_text
from submitrain.launcher.plan.watcher import watcher_warnings
from submitrain.launcher.submit.claims import CLAIM_VARIABLE
from submitrain.launcher.submit.dependency import Predecessor, dependency_on
from submitrain.launcher.submit.submit import (
    Cluster,
    choose_cluster,
    job_environment,
    slurm_problem,
)
from submitrain.run_folder import RunDir, find_run
from submitrain.slurm.client import has_gpus, kill_wait_s

if TYPE_CHECKING:
    from submitrain.launcher.checks.schedulability import Schedulability
    from submitrain.slurm.cluster import ClusterFacts


@dataclass(frozen=True)
class Prepared:
    """A launch that could go: configuration, where it goes and what will be asked for there."""

    loaded: LoadedConfig
    cluster: Cluster
    plan: Plan
    workdir: Path

    @property
    def environment(self) -> list[Variable]:
        """What will reach the ranks, and from where."""
        return ranks_environment(
            self.loaded.config,
            os.environ,
            cluster=self.cluster.name,
            gpus=self.plan.gpus_per_node > 0,
        )

    @property
    def runs_dir(self) -> Path:
        """Folder for run folders, absolute."""
        return self.workdir / Path(self.loaded.config.runs_dir).expanduser()

    def schedulability(self, facts: ClusterFacts | None = None) -> Schedulability | None:
        """Whether and when Slurm would start it, asked anew; None where it would not run there.

        ``facts`` spares asking what the cluster has.
        """
        if self.cluster.name != "slurm" or slurm_problem():
            return None
        from submitrain.launcher.checks.objections import request_of
        from submitrain.launcher.checks.queue import expect
        from submitrain.launcher.checks.schedulability import Outcome, Schedulability

        try:
            script = script_text(self.plan.sbatch, self.runs_dir / "submitit")
            return expect(request_of(self.plan.sbatch), script, facts=facts)
        except Exception as error:  # an opinion must not keep a run from its submission
            return Schedulability(
                Outcome.UNKNOWN, (f"no opinion: {type(error).__name__}: {error}",)
            )


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
    loaded = load_config(source, overrides, changes)
    if loaded.config.after is not None:
        before = _run_before(loaded.config)
        loaded = load_config(source, [*overrides, f"after={before}"], changes)
    # Only to learn here, and not from a failed run, that a variable is missing.
    secret_environment(loaded.config, os.environ)
    workdir = Path.cwd()
    wanted = cluster or loaded.config.cluster
    if plan_only and wanted == "slurm" and slurm_problem():
        chosen = Cluster("slurm", "asked for; none answers here, so one with GPUs is assumed")
        gpus = True
    else:
        chosen = choose_cluster(wanted)
        gpus = gpus_available(chosen)
    contained = chosen.name == "slurm" and loaded.config.slurm.in_container
    runtimes = frozenset[Runtime]()
    if contained:
        check_paths(loaded.config, workdir)
        runtimes = installed_runtimes()
    check_inputs(loaded.config, workdir, contained=contained)
    plan = make_plan(loaded, cluster=chosen.name, gpus_available=gpus, runtimes=runtimes)
    if (runtime := plan.container_runtime) is not None and runtime not in runtimes:
        note = f"{runtime} is not on this machine: every node of the job must have it"
        plan = replace(plan, notes=(*plan.notes, note))
    warnings = [
        *_environment_warnings(plan, loaded.config),
        *_deadline_warnings(plan, loaded.config, chosen),
    ]
    plan = replace(plan, warnings=(*plan.warnings, *warnings))
    return Prepared(loaded, chosen, chained(plan, loaded.config), workdir)


def _run_before(config: RunConfig) -> Path:
    """Folder of the run that ``after`` names.

    Raises:
        UserError: there is none, or more than one.
    """
    try:
        return find_run(config.after or "", Path(config.runs_dir).expanduser())
    except UserError as error:
        words = str(error).removeprefix("run: ").replace("by --runs-dir", "by its path")
        raise UserError(f"after: {words}") from error


def chained(plan: Plan, config: RunConfig) -> Plan:
    """The plan of a run that waits for another one: its job depends on that run's job.

    Raises:
        UserError: that run has ended without finishing, or nobody could wait for it.
    """
    if config.after is None:
        return plan
    before = Predecessor(Path(config.after))
    ours = dependency_on(before, plan.cluster)
    note = f"starts when {before.folder.name} has finished"
    users = [config.slurm.dependency] if config.slurm.dependency else []
    waits = {} if ours is None else {"dependency": ",".join([*users, ours])}
    return replace(plan, sbatch={**plan.sbatch, **waits}, notes=(*plan.notes, note))


def _environment_warnings(plan: Plan, config: RunConfig) -> list[str]:
    """What variables of the ranks cost; refuses those that break the run."""
    found = lint(config.slurm.env, job_environment(os.environ, ""), Setting.of(plan, config))
    lines = [f"{one.id}: {one.evidence}" for one in found]
    if broken := sum(one.level is Level.FAIL for one in found):
        raise UserError("\n".join(lines[:broken]))
    return lines


def _deadline_warnings(plan: Plan, config: RunConfig, cluster: Cluster) -> list[str]:
    """What deadlines and this environment mean; refuses what cannot be met."""
    size = plan.estimates.checkpoint_bytes
    if problems := list(deadline_problems(config, size)):
        raise UserError("\n".join(problems))
    granted = kill_wait_s() if cluster.name == "slurm" else None
    return [*deadline_warnings(config, size, granted), *watcher_warnings(config, os.environ)]


def check_paths(config: RunConfig, workdir: Path) -> None:
    """The path check of containers (``launcher.container_paths``).

    Raises:
        ConfigError: one line for every path that ranks would not find, or write in vain.
    """
    runs_dir = workdir / Path(config.runs_dir).expanduser()
    if problems := list(path_problems(config, runs_dir=runs_dir, workdir=workdir)):
        raise ConfigError(*problems)


def gpus_available(cluster: Cluster) -> bool:
    """Whether jobs of this cluster can ask for GPUs; no torch needed to know.

    Raises:
        ClusterError: Slurm does not say; a guess would start a job without its GPUs.
    """
    if cluster.name == "local":
        return os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in {"", "-1"} and any(
            Path("/dev").glob("nvidia[0-9]*")
        )
    found, problem = has_gpus()
    if found is None:
        raise ClusterError(
            f"cluster: sinfo does not say whether this cluster has GPUs ({problem}); try again "
            "when Slurm answers"
        )
    return found


def srun_text(plan: Plan, config: RunConfig, run_dir: RunDir) -> str:
    """The command line of the first attempt's ranks, as far as it is known before the job."""
    from submitrain.launcher.supervisor.processes import rank_environment
    from submitrain.launcher.supervisor.srun import StepShape, named_variables, srun_command

    # As in the job: Slurm tells a step's CPUs only where they were asked for.
    cpus = config.slurm.cpus_per_task or (None if config.slurm.nodes.fixed else 1)
    shape = StepShape(plan.nodes, plan.ranks_per_node, cpus, has_gpus=plan.gpus_per_node > 0)
    environment = rank_environment({CLAIM_VARIABLE: ""}, run_dir, attempt=1, job_id="", extra={})
    if cpus is not None:
        environment["OMP_NUM_THREADS"] = ""
    secrets = [name for key, name in SECRET_VARIABLES.items() if getattr(config.slurm, key)]
    names = (*named_variables(environment, ()), *config.slurm.env, *secrets)
    variables, runtime = tuple(dict.fromkeys(names)), plan.container_runtime
    container = container_step(
        config, run_dir, runtime, has_gpus=shape.has_gpus, variables=variables
    )
    command = srun_command(shape, config, run_dir, attempt=1, container=container)
    return shlex.join(command)
