"""Sections about the job rather than the training: resources, budgets, what is recorded.

Imports no torch.
"""

from __future__ import annotations

from typing import Any, Literal

from submitrain.config.types import (
    DurationS,
    NodeCount,
    NodeRange,
    OptionalInt,
    OptionalStr,
    Secret,
    Section,
    SpikeAction,
    key,
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

    Progress is a step, a micro-batch, an agreement, a part of a save, another phase. What this run
    has measured can widen a budget (5 x the slowest); see each key.
    """

    silence_s: OptionalInt = key(
        60,
        "Seconds without a heartbeat while others have one (at least 6 heartbeats): the process is "
        "frozen, or holds the interpreter lock. 5 x as long while it starts up.",
        ge=0,
    )
    start_s: OptionalInt = key(1800, "Seconds for imports, and for meeting the other ranks.", ge=0)
    data_s: OptionalInt = key(7200, "Seconds for a download, or between pieces of tokens.", ge=0)
    build_s: OptionalInt = key(1800, "Seconds to build the model, or to load a checkpoint.", ge=0)
    first_step_s: OptionalInt = key(
        1800, "Seconds for an attempt's first step (compilation).", ge=0
    )
    step_s: OptionalInt = key(
        60,
        "Seconds in a step, at least; the budget is 5 x the 99th percentile of this run's steps "
        "where that is longer.",
        ge=0,
    )
    validate_s: OptionalInt = key(
        1800,
        "Seconds in a validation until this run has been through one; then 5 x the slowest, but "
        "at least 300 (or this, if shorter).",
        ge=0,
    )
    save_s: OptionalInt = key(
        1800,
        "Seconds in a save until this run has been through one; then 5 x the slowest, but at "
        "least 300 (or this, if shorter).",
        ge=0,
    )
    export_s: OptionalInt = key(1800, "Seconds for the export, the sample, and for leaving.", ge=0)

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

    max_restarts: int = key(10, "Restarts in place, whether or not steps advanced.", ge=0)
    max_requeues: int = key(1000, "Returns to the queue (time limit, preemption).", ge=0)
    max_attempts_without_progress: int = key(
        3, "Attempts in a row without a new step before a crash loop is called.", ge=1
    )
    max_skipped_steps: int = key(
        3,
        "Steps among the last anomaly_window_steps whose update is left out, because loss or "
        "gradient norm is not finite (or loss_spike: skip), before the run rolls back.",
        ge=0,
    )
    max_rollbacks: int = key(
        2,
        "Rollbacks to the newest verified checkpoint from before the bad steps, leaving their "
        "data out, before the run stops.",
        ge=0,
    )
    loss_spike: SpikeAction = key(
        "warn",
        "What a loss spike brings: off, warn (recorded), skip (updates left out), or rollback.",
    )
    loss_spike_z: float = key(
        6.0,
        "Robust standard deviations above the median of the last anomaly_window_steps losses from "
        "which on a loss counts as high.",
        gt=0,
    )
    loss_spike_steps: int = key(3, "Steps in a row with a high loss that make a spike.", ge=1)
    anomaly_window_steps: int = key(
        128,
        "Steps looked back on for skipped steps and for the usual loss (only steps after the "
        "warm-up; no spike is called before there are so many).",
        ge=8,
    )
    stop_lead_s: OptionalInt = key(
        None,
        "Seconds before the time limit at which ranks are asked to save and stop; none = from the "
        "measured step and save time.",
        ge=1,
    )
    kill_wait_s: int = key(
        30, "Seconds that ranks get to save after TERM before they are killed.", ge=1
    )
    hang: HangConfig = key(HangConfig(), "When a rank counts as hung: seconds by phase.")
    elastic: bool = key(
        True,
        "Go on with fewer nodes when one is lost or quarantined and no spare is left, down to the "
        "lower end of slurm.nodes (of a fixed number: half, rounded up), until the next requeue; "
        "false = back into the queue at once, without that node.",
    )
    mttf: DurationS = key(
        150 * 86400,
        "Mean time between failures of one node, for ckpt_every_steps: auto; 150 days is 6.5 "
        "failures in 1000 node-days, as on Meta's RSC-1 (Kokolis et al. 2025, arXiv:2410.21680). "
        "The run's own failures are added to it.",
    )
    resubmit: bool = key(True, "Submit a new job for the run when Slurm does not requeue this one.")
    max_strikes: OptionalInt = key(
        2,
        "Failures blamed on a node, within strike_expiry, from which on the run avoids it; none = "
        "never.",
        ge=1,
    )
    strike_expiry: DurationS = key(86400, "How long a failure is held against a node.")


class LoggingConfig(Section):
    """What the ranks record."""

    log_sample_ids: bool = key(
        False, "Record the ids of the samples consumed in every step, per rank."
    )
    log_every_steps: int = key(1, "Steps between metric events of rank 0.", ge=1)
    heartbeat_s: float = key(5.0, "Seconds between heartbeats of a rank.", gt=0)


class SlurmConfig(Section):
    """The resources, and everything else sbatch knows; also shapes local runs (nodes x tasks)."""

    job_name: OptionalStr = key(None, "Job name; default: the run's name.")
    nodes: NodeCount = key(
        NodeRange(1, 1),
        "Nodes, or a range (2-4): the job starts with what is free, at the same global batch "
        "size; local runs take the upper end.",
        json_schema_extra={"default": 1},
    )
    spare_nodes: int = key(0, "Further nodes; idle until one is lost or quarantined.", ge=0)
    ntasks_per_node: int = key(1, "Ranks per node: one for every GPU.", ge=1)
    time: DurationS = key(86400, "Time limit of one job; a requeue starts it anew.")
    account: OptionalStr = key(None, "Account to charge.")
    partition: OptionalStr = key(None, "Partition, or several with commas.")
    qos: OptionalStr = key(None, "Quality of service.")
    gpus_per_node: OptionalInt = key(
        None, "GPUs per node; default ntasks_per_node where the cluster has GPUs.", ge=0
    )
    gpu_type: OptionalStr = key(None, "GPU type for --gpus-per-node (h100).")
    gres: OptionalStr = key(None, "Generic resources, instead of gpus_per_node.")
    cpus_per_task: OptionalInt = key(None, "CPU cores per rank.", ge=1)
    mem: OptionalStr = key(None, "Memory per node (0 = all, 64G).")
    mem_per_cpu: OptionalStr = key(None, "Memory per CPU core.")
    constraint: OptionalStr = key(None, "Required node features.")
    nodelist: OptionalStr = key(None, "Nodes to use.")
    exclude: OptionalStr = key(None, "Nodes to avoid.")
    exclusive: bool | Literal["user", "mcs", "topo"] = key(
        False, "Whole nodes; or nobody else's jobs there: user, mcs, topo (sbatch(1))."
    )
    reservation: OptionalStr = key(None, "Reservation.")
    dependency: OptionalStr = key(None, "Job dependency (afterok:123).")
    begin: OptionalStr = key(None, "Earliest start.")
    mail_type: OptionalStr = key(None, "Slurm mail events.")
    mail_user: OptionalStr = key(None, "Receiver of Slurm mail.")
    comment: OptionalStr = key(None, "Comment of the job.")
    requeue: bool = key(True, "Let Slurm requeue the job after preemption.")
    signal_lead_s: int = key(
        120,
        "Seconds before the limit at which Slurm warns the ranks; they are asked to save that "
        "early, too, until a save was measured.",
        ge=1,
        le=65535,
    )
    additional_parameters: dict[str, Any] = key({}, "Any other sbatch option by its long name.")
    srun_args: list[str] = key([], "Further options of the ranks' srun.")
    modules: list[str] = key(
        [],
        "Environment modules of the job, loaded before setup; the job ends where one is missing.",
    )
    setup: list[str] = key([], "Shell commands before the supervisor starts (module load ...).")
    env: dict[str, str] = key({}, "Environment of the ranks; values may be ${VAR} placeholders.")
    container_image: OptionalStr = key(
        None,
        "Image for the ranks: a registry's name, or the path of a .sqsh or .sif; the supervisor "
        "stays outside.",
    )
    container_runtime: Literal["auto", "pyxis", "apptainer", "singularity", "bare"] = key(
        "auto",
        "What runs the image: pyxis (enroot, by srun's plugin), apptainer or singularity; auto = "
        "by the image's form and what is installed; bare = no container.",
    )
    extra_mounts: list[str] = key(
        [], "Mounts into the container, src:dst[:ro], with absolute paths."
    )
    container_workdir: OptionalStr = key(
        None, "Working directory inside; default: the image's (pyxis), the run folder."
    )
    hf_home: OptionalStr = key(None, "HF_HOME of the ranks: the hub cache.")
    hf_token: Secret = key(None, "HF_TOKEN of the ranks, as ${VAR} only.")
    wandb_key: Secret = key(None, "WANDB_API_KEY of the ranks, as ${VAR} only.")

    @property
    def in_container(self) -> bool:
        """Whether ranks run in a container on Slurm."""
        return self.container_image is not None and self.container_runtime != "bare"

    @property
    def job_nodes(self) -> NodeRange:
        """Nodes that the job asks for, spares included."""
        return self.nodes.plus(self.spare_nodes)
