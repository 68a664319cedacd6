"""The ranks' command line as far as it is known before the job starts. Pure."""

from __future__ import annotations

import shlex

from submitrain.config import RunConfig
from submitrain.launcher.container import Runtime
from submitrain.launcher.plan.plan import Plan
from submitrain.launcher.submit.claims import CLAIM_VARIABLE
from submitrain.launcher.supervisor.processes import rank_environment
from submitrain.launcher.supervisor.srun import (
    StepShape,
    named_variables,
    srun_command,
    step_container,
)
from submitrain.run_folder import RunDir


def srun_text(plan: Plan, config: RunConfig, run_dir: RunDir) -> str:
    """The command line by which the supervisor starts the first attempt's ranks."""
    # As in the job: Slurm tells a step's CPUs only where they were asked for.
    cpus = config.slurm.cpus_per_task or (None if config.slurm.nodes.fixed else 1)
    shape = StepShape(plan.nodes, plan.ranks_per_node, cpus, has_gpus=plan.gpus_per_node > 0)
    return shlex.join(planned_command(shape, config, run_dir, plan.container_runtime))


def planned_command(
    shape: StepShape, config: RunConfig, run_dir: RunDir, runtime: Runtime | None
) -> list[str]:
    """The command line of the first attempt as far as it is known before the job starts."""
    environment = rank_environment({CLAIM_VARIABLE: ""}, run_dir, attempt=1, job_id="", extra={})
    if shape.cpus_per_task is not None:
        environment["OMP_NUM_THREADS"] = ""
    names = (*named_variables(environment, ()), *config.slurm.env, *_secrets(config))
    variables = tuple(dict.fromkeys(names))
    container = step_container(shape, config, run_dir, runtime=runtime, variables=variables)
    return srun_command(shape, config, run_dir, attempt=1, container=container)


def _secrets(config: RunConfig) -> list[str]:
    slurm = config.slurm
    wanted = {
        "HF_HOME": slurm.hf_home,
        "HF_TOKEN": slurm.hf_token,
        "WANDB_API_KEY": slurm.wandb_key,
    }
    return [name for name, value in wanted.items() if value]
