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
    setting,
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

    silence_s: OptionalInt = setting(
        60,
        "Seconds without a heartbeat while others beat (at least 6 heartbeats): the process is "
        "frozen, or holds the interpreter lock. 5 x as long while it starts up.",
        ge=0,
    )
    start_s: OptionalInt = setting(
        1800, "Seconds for imports, and for meeting the other ranks.", ge=0
    )
    data_s: OptionalInt = setting(
        7200, "Seconds for a download, or between two pieces of tokenized data.", ge=0
    )
    build_s: OptionalInt = setting(
        1800, "Seconds for building the model, and for loading a checkpoint.", ge=0
    )
    first_step_s: OptionalInt = setting(
        1800, "Seconds for an attempt's first step (compilation, caches).", ge=0
    )
    step_s: OptionalInt = setting(
        60,
        "Seconds in a step, at least; the budget is 5 x the 99th percentile of this run's steps "
        "where that is longer.",
        ge=0,
    )
    validate_s: OptionalInt = setting(
        1800,
        "Seconds in a validation until this run has been through one; then 5 x the slowest, but "
        "at least 300 (or this, if shorter).",
        ge=0,
    )
    save_s: OptionalInt = setting(
        1800,
        "Seconds in a save until this run has been through one; then 5 x the slowest, but at "
        "least 300 (or this, if shorter).",
        ge=0,
    )
    export_s: OptionalInt = setting(
        1800, "Seconds for the export, the sample, and for leaving.", ge=0
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

    max_restarts: int = setting(
        10, "Restarts in place after a rank died, while steps advance.", ge=0
    )
    max_requeues: int = setting(1000, "Returns to the queue (time limit, preemption).", ge=0)
    max_attempts_without_progress: int = setting(
        3, "Attempts in a row without a new step before a crash loop is called.", ge=1
    )
    max_skipped_steps: int = setting(
        3,
        "Steps among the last anomaly_window_steps whose update is left out, because loss or "
        "gradient norm is not finite (or loss_spike: skip), before the run rolls back.",
        ge=0,
    )
    max_rollbacks: int = setting(
        2,
        "Rollbacks to the newest verified checkpoint from before the bad steps, leaving their "
        "data out, before the run stops.",
        ge=0,
    )
    loss_spike: SpikeAction = setting(
        "warn",
        "What a loss spike brings: off, warn (recorded), skip (updates left out), or rollback.",
    )
    loss_spike_z: float = setting(
        6.0,
        "Robust standard deviations above the median of the last anomaly_window_steps losses from "
        "which on a loss counts as high.",
        gt=0,
    )
    loss_spike_steps: int = setting(3, "Steps in a row with a high loss that make a spike.", ge=1)
    anomaly_window_steps: int = setting(
        128,
        "Steps looked back on for skipped steps and for the usual loss (only steps after the "
        "warm-up; no spike is called before there are so many).",
        ge=8,
    )
    stop_lead_s: OptionalInt = setting(
        None,
        "Seconds before the time limit at which ranks are asked to save and stop; none = from the "
        "measured step and save time.",
        ge=1,
    )
    kill_wait_s: int = setting(
        30, "Seconds that ranks get to save after TERM before they are killed.", ge=1
    )
    hang: HangConfig = setting(HangConfig(), "When a rank counts as hung: seconds by phase.")
    elastic: bool = setting(
        True,
        "Go on with fewer nodes when one is lost or struck out and no spare is left, down to the "
        "lower end of slurm.nodes (of a fixed number: half, rounded up), until the next requeue; "
        "false = back into the queue at once, without that node.",
    )
    mttf: DurationS = setting(
        150 * 86400,
        "Mean time between failures of one node, for ckpt_every_steps: auto; 150 days is 6.5 "
        "failures in 1000 node-days, as on Meta's RSC-1 (Kokolis et al. 2025, arXiv:2410.21680). "
        "The run's own failures are added to it.",
    )
    resubmit: bool = setting(
        True, "Submit a new job for the run when Slurm does not requeue this one."
    )
    max_strikes: OptionalInt = setting(
        2,
        "Failures blamed on a node, within strike_expiry, from which on the run avoids it; none = "
        "never.",
        ge=1,
    )
    strike_expiry: DurationS = setting(86400, "How long a failure is held against a node.")


class LoggingConfig(Section):
    """What the ranks record."""

    log_sample_ids: bool = setting(
        False, "Record the ids of the samples consumed in every step, per rank."
    )
    log_every_steps: int = setting(1, "Steps between metric events of rank 0.", ge=1)
    heartbeat_s: float = setting(5.0, "Seconds between heartbeats of a rank.", gt=0)


class SlurmConfig(Section):
    """The resources, and everything else sbatch knows; also shapes local runs (nodes x tasks)."""

    job_name: OptionalStr = setting(None, "Job name; default: the run's name.")
    nodes: NodeCount = setting(
        NodeRange(1, 1),
        "Nodes, or a range (2-4): the job starts with what is free, at the same global batch "
        "size; local runs take the upper end.",
        json_schema_extra={"default": 1},
    )
    spare_nodes: int = setting(
        0, "Nodes asked for beside those; idle until one of them is lost or struck out.", ge=0
    )
    ntasks_per_node: int = setting(1, "Ranks per node: one for every GPU.", ge=1)
    time: DurationS = setting(86400, "Time limit of one job; a requeue starts it anew.")
    account: OptionalStr = setting(None, "Account to charge.")
    partition: OptionalStr = setting(None, "Partition, or several with commas.")
    qos: OptionalStr = setting(None, "Quality of service.")
    gpus_per_node: OptionalInt = setting(
        None, "GPUs per node; default ntasks_per_node where the cluster has GPUs.", ge=0
    )
    gpu_type: OptionalStr = setting(None, "GPU type for --gpus-per-node (h100).")
    gres: OptionalStr = setting(None, "Generic resources, instead of gpus_per_node.")
    cpus_per_task: OptionalInt = setting(None, "CPU cores per rank.", ge=1)
    mem: OptionalStr = setting(None, "Memory per node (0 = all, 64G).")
    mem_per_cpu: OptionalStr = setting(None, "Memory per CPU core.")
    constraint: OptionalStr = setting(None, "Required node features.")
    nodelist: OptionalStr = setting(None, "Nodes to use.")
    exclude: OptionalStr = setting(None, "Nodes to avoid.")
    exclusive: bool | Literal["user", "mcs", "topo"] = setting(
        False, "Whole nodes; or nobody else's jobs there: user, mcs, topo (sbatch(1))."
    )
    reservation: OptionalStr = setting(None, "Reservation.")
    dependency: OptionalStr = setting(None, "Job dependency (afterok:123).")
    begin: OptionalStr = setting(None, "Earliest start.")
    mail_type: OptionalStr = setting(None, "Slurm mail events.")
    mail_user: OptionalStr = setting(None, "Receiver of Slurm mail.")
    comment: OptionalStr = setting(None, "Comment of the job.")
    requeue: bool = setting(True, "Let Slurm requeue the job after preemption.")
    signal_lead_s: int = setting(
        120,
        "Seconds before the limit at which Slurm warns the ranks; they are asked to save that "
        "early, too, until a save was measured.",
        ge=1,
        le=65535,
    )
    additional_parameters: dict[str, Any] = setting({}, "Any other sbatch option by its long name.")
    srun_args: list[str] = setting([], "Further options of the ranks' srun.")
    modules: list[str] = setting(
        [],
        "Environment modules of the job, loaded before setup; the job ends where one is missing.",
    )
    setup: list[str] = setting([], "Shell commands before the supervisor starts (module load ...).")
    env: dict[str, str] = setting(
        {}, "Environment of the ranks; values may be ${VAR} placeholders."
    )
    container_image: OptionalStr = setting(
        None,
        "Image for the ranks: a registry's name, or the path of a .sqsh or .sif; the supervisor "
        "stays outside.",
    )
    container_runtime: Literal["auto", "pyxis", "apptainer", "singularity", "bare"] = setting(
        "auto",
        "What runs the image: pyxis (enroot, by srun's plugin), apptainer or singularity; auto = "
        "by the image's form and what is installed; bare = no container.",
    )
    extra_mounts: list[str] = setting(
        [], "Mounts into the container, src:dst[:ro], with absolute paths."
    )
    container_workdir: OptionalStr = setting(
        None, "Working directory inside; default: the image's (pyxis), the run folder."
    )
    hf_home: OptionalStr = setting(None, "HF_HOME of the ranks: the hub cache.")
    hf_token: Secret = setting(None, "HF_TOKEN of the ranks, as ${VAR} only.")
    wandb_key: Secret = setting(None, "WANDB_API_KEY of the ranks, as ${VAR} only.")

    @property
    def in_container(self) -> bool:
        """Whether ranks run in a container on Slurm."""
        return self.container_image is not None and self.container_runtime != "bare"

    @property
    def job_nodes(self) -> NodeRange:
        """Nodes that the job asks for, spares included."""
        return self.nodes.plus(self.spare_nodes)
