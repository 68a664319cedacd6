"""Sections about what a run leaves: checkpoints, a sample text, metrics. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field

from train.config.base import Section
from train.config.types import Consolidated, OptionalStr


class CheckpointConfig(Section):
    """What is saved, where, and how much of it is kept."""

    enabled: bool = Field(True, description="Save; false makes the run unable to survive anything.")
    checkpoint_dir: OptionalStr = Field(
        None, description="Folder for checkpoints of all runs; none = inside the run folder."
    )
    model_save_format: Literal["safetensors", "torch_save"] = Field(
        "safetensors", description="Format of model weights in a checkpoint."
    )
    save_consolidated: Consolidated = Field(
        "final",
        description="Whole-model safetensors for from_pretrained: false/never, final, true/every.",
    )
    keep_last_n_checkpoints: int = Field(
        2,
        ge=1,
        validation_alias=AliasChoices("keep_last_n_checkpoints", "max_recent_checkpoints"),
        description="Verified checkpoints kept; the newest verified one is never deleted.",
    )
    async_save: bool = Field(
        True,
        validation_alias=AliasChoices("async_save", "is_async"),
        description="Write in the background while training goes on.",
    )


class SampleConfig(Section):
    """Text generated from the exported model when training is finished."""

    prompt: str = Field(description="What the model continues.")
    max_new_tokens: int = Field(64, ge=1, description="Tokens to generate.")


class WandbConfig(Section):
    """Weights & Biases, one run id across requeues; needs the wandb extra."""

    enabled: bool = Field(True, description="False keeps the section but sends nothing.")
    project: OptionalStr = Field(None, description="Project.")
    entity: OptionalStr = Field(None, description="Team or user.")
    name: OptionalStr = Field(None, description="Display name; default: the run's id.")
    tags: list[str] = Field(default=[], description="Tags.")
    notes: OptionalStr = Field(None, description="Notes.")
    mode: Literal["online", "offline", "disabled"] | None = Field(
        None, description="wandb's mode; none = wandb's own choice."
    )


class TensorboardConfig(Section):
    """TensorBoard's event files; needs the tensorboard extra."""

    enabled: bool = Field(True, description="False keeps the section but writes nothing.")
    log_dir: OptionalStr = Field(
        None,
        description="Folder of TensorBoard logs, in which the run gets its own; none = "
        "tensorboard/ in the run folder.",
    )
    flush_s: int = Field(10, ge=1, description="Seconds between writes to disk.")


class TrackioConfig(Section):
    """trackio, a local tracker; one run over all requeues; needs the trackio extra."""

    enabled: bool = Field(True, description="False keeps the section but sends nothing.")
    project: str = Field("submitrain", description="Project.")
    name: OptionalStr = Field(None, description="Run name; default: the run's id.")
    dir: OptionalStr = Field(
        None, description="Folder of trackio's databases; none = TRACKIO_DIR, else its cache."
    )
    space_id: OptionalStr = Field(
        None, description="Hugging Face Space to send to (needs HF_TOKEN); none = local only."
    )
