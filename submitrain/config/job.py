"""Sections about the job rather than the training: resources, budgets, what is recorded.

Imports no torch.

``resilience.hang``: how long a rank may be busy with one thing before it counts as hung.

Imports no torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from submitrain.config.types import (
    DurationS,
    NodeCount,
    NodeRange,
    OptionalInt,
    OptionalStr,
    Secret,
    Section,
    SpikeAction,
)

_KEY_OF_PHASE = {
    "import": "start_s",
    "rendezvous": "start_s",
    "data": "data_s",
    "build": "build_s",
    "load": "build_s",
    "first_step": "first_step_s",
    "step": "step_s",
    "validate": "validate_s",
    "save": "save_s",
    "export": "export_s",
    "exit": "export_s",
}
_STEADY = frozenset({"step", "validate", "save"})
"""Phases in which nothing big is imported or set up any more."""
START_UP_PATIENCE = 5
"""A process that sets up libraries may hold the interpreter lock for so much longer."""
MISSED_BEATS = 6


class HangConfig(Section):
    """Seconds without progress after which a rank is hung, by phase; none or 0 = no limit.

    Progress is a step, a micro-batch, an agreement, a part of a save, another phase. What the run
    itself was seen to need widens a budget (5 x the slowest), never a wish to be faster.
    """

    silence_s: OptionalInt = Field(
        60,
        ge=0,
        description="Seconds without a heartbeat while others beat (at least 6 heartbeats): the "
        "process is frozen, or holds the interpreter lock. 5 x as long while it starts up.",
    )
    start_s: OptionalInt = Field(
        1800, ge=0, description="Seconds for imports, and for meeting the other ranks."
    )
    data_s: OptionalInt = Field(
        7200, ge=0, description="Seconds for a download, or between two pieces of tokenized data."
    )
    build_s: OptionalInt = Field(
        1800, ge=0, description="Seconds for building the model, and for loading a checkpoint."
    )
    first_step_s: OptionalInt = Field(
        1800, ge=0, description="Seconds for an attempt's first step (compilation, caches)."
    )
    step_s: OptionalInt = Field(
        60,
        ge=0,
        description="Seconds in a step, at least; the budget is 5 x the 99th percentile of this "
        "run's steps where that is longer.",
    )
    validate_s: OptionalInt = Field(
        1800,
        ge=0,
        description="Seconds in a validation until this run has been through one; then 5 x the "
        "slowest, but at least 300 (or this, if shorter).",
    )
    save_s: OptionalInt = Field(
        1800,
        ge=0,
        description="Seconds in a save until this run has been through one; then 5 x the slowest, "
        "but at least 300 (or this, if shorter).",
    )
    export_s: OptionalInt = Field(
        1800, ge=0, description="Seconds for the export, the sample, and for leaving."
    )

    def limit_s(self, phase: str) -> float | None:
        """Seconds that a phase may be without progress, as configured; None = no limit."""
        seconds = getattr(self, _KEY_OF_PHASE.get(phase, "start_s"))
        return float(seconds) if seconds else None

    def silence_limit_s(self, phase: str, heartbeat_s: float) -> float | None:
        """Seconds that a rank in this phase may be silent; None = no limit.

        Loading shared libraries holds the interpreter lock, and from a cold network file system it
        takes minutes: during imports only ``start_s`` counts.
        """
        if not self.silence_s:
            return None
        usual = max(float(self.silence_s), MISSED_BEATS * heartbeat_s)
        if phase in _STEADY:
            return usual
        if phase != "import":
            return START_UP_PATIENCE * usual
        start_s = self.limit_s(phase)
        return None if start_s is None else max(start_s, usual)


class ResilienceConfig(Section):
    """How often what may go wrong before the run stops, by cause."""

    max_restarts: int = Field(
        10, ge=0, description="Restarts in place after a rank died, while steps advance."
    )
    max_requeues: int = Field(
        1000, ge=0, description="Returns to the queue (time limit, preemption)."
    )
    max_attempts_without_progress: int = Field(
        3, ge=1, description="Attempts in a row without a new step before a crash loop is called."
    )
    max_skipped_steps: int = Field(
        3,
        ge=0,
        description="Steps among the last anomaly_window_steps whose update is left out, because "
        "loss or gradient norm is not finite (or loss_spike: skip), before the run rolls back.",
    )
    max_rollbacks: int = Field(
        2,
        ge=0,
        description="Rollbacks to the newest verified checkpoint from before the bad steps, "
        "leaving their data out, before the run stops.",
    )
    loss_spike: SpikeAction = Field(
        "warn",
        description="What a loss spike brings: off, warn (recorded), skip (updates left out), or "
        "rollback.",
    )
    loss_spike_z: float = Field(
        6.0,
        gt=0,
        description="Robust standard deviations above the median of the last "
        "anomaly_window_steps losses from which on a loss counts as high.",
    )
    loss_spike_steps: int = Field(
        3, ge=1, description="Steps in a row with a high loss that make a spike."
    )
    anomaly_window_steps: int = Field(
        128,
        ge=8,
        description="Steps looked back on for skipped steps and for the usual loss (only steps "
        "after the warm-up; no spike is called before there are so many).",
    )
    stop_lead_s: OptionalInt = Field(
        None,
        ge=1,
        description="Seconds before the time limit at which ranks are asked to save and stop; "
        "none = from the measured step and save time.",
    )
    kill_wait_s: int = Field(
        30, ge=1, description="Seconds that ranks get to save after TERM before they are killed."
    )
    hang: HangConfig = Field(
        default=HangConfig(), description="When a rank counts as hung: seconds by phase."
    )
    elastic: bool = Field(
        True,
        description="Go on with fewer nodes when one is lost or struck out and no spare is left, "
        "down to the lower end of slurm.nodes (of a fixed number: half, rounded up), until the "
        "next requeue; false = back into the queue at once, without that node.",
    )
    mttf: DurationS = Field(
        150 * 86400,
        description="Mean time between failures of one node, for ckpt_every_steps: auto; 150 days "
        "is 6.5 failures in 1000 node-days, as on Meta's RSC-1 (Kokolis et al. 2025, "
        "arXiv:2410.21680). The run's own failures are added to it.",
    )
    resubmit: bool = Field(
        True,
        description="Submit a new job for the run when Slurm does not requeue this one.",
    )
    max_strikes: OptionalInt = Field(
        2,
        ge=1,
        description="Failures blamed on a node, within strike_expiry, from which on the run avoids "
        "it; none = never.",
    )
    strike_expiry: DurationS = Field(
        86400, description="How long a failure is held against a node."
    )


class LoggingConfig(Section):
    """What the ranks record."""

    log_sample_ids: bool = Field(
        False, description="Record the ids of the samples consumed in every step, per rank."
    )
    log_every_steps: int = Field(1, ge=1, description="Steps between metric events of rank 0.")
    heartbeat_s: float = Field(5.0, gt=0, description="Seconds between heartbeats of a rank.")


class SlurmConfig(Section):
    """The resources, and everything else sbatch knows; also shapes local runs (nodes x tasks)."""

    job_name: OptionalStr = Field(None, description="Job name; default: the run's name.")
    nodes: NodeCount = Field(
        NodeRange(1, 1),
        json_schema_extra={"default": 1},
        description="Nodes, or a range (2-4): the job starts with what is free, at the same global "
        "batch size; local runs take the upper end.",
    )
    spare_nodes: int = Field(
        0,
        ge=0,
        description="Nodes asked for beside those; idle until one of them is lost or struck out.",
    )
    ntasks_per_node: int = Field(1, ge=1, description="Ranks per node: one for every GPU.")
    time: DurationS = Field(86400, description="Time limit of one job; a requeue starts it anew.")
    account: OptionalStr = Field(None, description="Account to charge.")
    partition: OptionalStr = Field(None, description="Partition, or several with commas.")
    qos: OptionalStr = Field(None, description="Quality of service.")
    gpus_per_node: OptionalInt = Field(
        None, ge=0, description="GPUs per node; default ntasks_per_node where the cluster has GPUs."
    )
    gpu_type: OptionalStr = Field(None, description="GPU type for --gpus-per-node (h100).")
    gres: OptionalStr = Field(None, description="Generic resources, instead of gpus_per_node.")
    cpus_per_task: OptionalInt = Field(None, ge=1, description="CPU cores per rank.")
    mem: OptionalStr = Field(None, description="Memory per node (0 = all, 64G).")
    mem_per_cpu: OptionalStr = Field(None, description="Memory per CPU core.")
    constraint: OptionalStr = Field(None, description="Required node features.")
    nodelist: OptionalStr = Field(None, description="Nodes to use.")
    exclude: OptionalStr = Field(None, description="Nodes to avoid.")
    exclusive: bool | Literal["user", "mcs", "topo"] = Field(
        False, description="Whole nodes; or nobody else's jobs there: user, mcs, topo (sbatch(1))."
    )
    reservation: OptionalStr = Field(None, description="Reservation.")
    dependency: OptionalStr = Field(None, description="Job dependency (afterok:123).")
    begin: OptionalStr = Field(None, description="Earliest start.")
    mail_type: OptionalStr = Field(None, description="Slurm mail events.")
    mail_user: OptionalStr = Field(None, description="Receiver of Slurm mail.")
    comment: OptionalStr = Field(None, description="Comment of the job.")
    requeue: bool = Field(True, description="Let Slurm requeue the job after preemption.")
    signal_lead_s: int = Field(
        120,
        ge=1,
        le=65535,
        description="Seconds before the limit at which Slurm warns the ranks; they are asked to "
        "save that early, too, until a save was measured.",
    )
    additional_parameters: dict[str, Any] = Field(
        default={}, description="Any other sbatch option by its long name."
    )
    srun_args: list[str] = Field(default=[], description="Further options of the ranks' srun.")
    modules: list[str] = Field(
        default=[],
        description="Environment modules of the job, loaded before setup; the job ends where one "
        "is missing.",
    )
    setup: list[str] = Field(
        default=[], description="Shell commands before the supervisor starts (module load ...)."
    )
    env: dict[str, str] = Field(
        default={}, description="Environment of the ranks; values may be ${VAR} placeholders."
    )
    container_image: OptionalStr = Field(
        None,
        description="Image for the ranks: a registry's name, or the path of a .sqsh or .sif; the "
        "supervisor stays outside.",
    )
    container_runtime: Literal["auto", "pyxis", "apptainer", "singularity", "bare"] = Field(
        "auto",
        description="What runs the image: pyxis (enroot, by srun's plugin), apptainer or "
        "singularity; auto = by the image's form and what is installed; bare = no container.",
    )
    extra_mounts: list[str] = Field(
        default=[], description="Mounts into the container, src:dst[:ro], with absolute paths."
    )
    container_workdir: OptionalStr = Field(
        None, description="Working directory inside; default: the image's (pyxis), the run folder."
    )
    hf_home: OptionalStr = Field(None, description="HF_HOME of the ranks: the hub cache.")
    hf_token: Secret = Field(None, description="HF_TOKEN of the ranks, as ${VAR} only.")
    wandb_key: Secret = Field(None, description="WANDB_API_KEY of the ranks, as ${VAR} only.")

    @property
    def in_container(self) -> bool:
        """Whether ranks run in a container on Slurm."""
        return self.container_image is not None and self.container_runtime != "bare"

    @property
    def job_nodes(self) -> NodeRange:
        """Nodes that the job asks for, spares included."""
        return self.nodes.plus(self.spare_nodes)
