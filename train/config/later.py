"""Keys that are known and refused: what to write instead, or that a later version will take them.

Imports nothing.
"""

from __future__ import annotations

_LATER = "not in this version; remove it"

REFUSED: dict[tuple[str | int, ...], str] = {
    ("hooks",): "write the top-level on_success and on_failure",
    ("sweep",): "how runs vary is no part of one: use `python -m launcher sweep`; remove it",
    ("price",): _LATER,
    ("arrays",): _LATER,
    ("slurm", "preflight"): "write the top-level preflight: off, quick or full",
    ("slurm", "price"): _LATER,
    (
        "slurm",
        "array",
    ): "one launch is one job, which requeues itself; for many runs use a sweep; remove it",
    ("slurm", "array_parallelism"): _LATER,
    ("slurm", "master_port"): (
        "ranks find each other through the run folder, on a free port; remove it"
    ),
    ("slurm", "command"): "submitrain writes the command itself; remove it",
    ("slurm", "job_dir"): "run folders are made in the top-level runs_dir: write that",
    ("slurm", "env_vars"): "write slurm.env",
    ("slurm", "gpus"): "write slurm.gpus_per_node",
    ("slurm", "gpus_per_task"): (
        "write slurm.gpus_per_node: binding GPUs to tasks breaks NCCL's peer access"
    ),
    ("dataloader", "collate_fn"): "the built-in data set brings its own collation; remove it",
    ("validation_dataloader", "collate_fn"): (
        "the built-in data set brings its own collation; remove it"
    ),
    ("peft", "exclude_modules"): "name the adapted modules in target_modules",
    ("rng",): "write the top-level seed",
    ("loss_fn",): "the loss is the mean cross-entropy over all label tokens; remove it",
    ("dist_env",): "write distributed.backend and distributed.timeout_s",
}
"""By path; the text follows the key in the error."""
