"""What is assessed: folders, services and needs, by a configuration or by the defaults."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.assess.checks_folders import Folder
from launcher.config import load_config
from launcher.submit import slurm_is_configured
from monitor.slurm import ask
from train.config import RunConfig

_PING_S = 2.0


@dataclass(frozen=True)
class Subject:
    """What a training here would use; ``config`` None for one with nothing but defaults."""

    config_path: str | None
    config: RunConfig | None
    on_slurm: bool
    """Whether jobs run on other machines than this one."""
    environ: Mapping[str, str]
    """This process's environment, with what the configuration gives to ranks."""

    @property
    def has_image(self) -> bool:
        """Whether ranks run in a container."""
        return self.config is not None and self.config.slurm.container_image is not None

    @property
    def loads_modules(self) -> bool:
        """Whether a setup command loads environment modules."""
        if self.config is not None and self.config.slurm.modules:
            return True
        setup = self.config.slurm.setup if self.config else ()
        return any(line.strip().startswith(("module ", "ml ")) for line in setup)

    @property
    def partitions(self) -> tuple[str, ...]:
        """Partitions that the configuration names."""
        named = self.config.slurm.partition if self.config else None
        return tuple(name for name in (named or "").split(",") if name)

    @property
    def wandb_mode(self) -> str | None:
        """W&B's mode, empty for its own choice; None where W&B is not used."""
        wandb = self.config.wandb if self.config else None
        return None if wandb is None or not wandb.enabled else wandb.mode or ""

    def folders(self) -> list[Folder]:
        """Folders that are written to."""
        runs = self.config.runs_dir if self.config else "runs"
        found = [Folder("folder.runs", _absolute(runs), "runs_dir")]
        checkpoints = self.config.checkpoint.checkpoint_dir if self.config else None
        if checkpoints:
            key = "checkpoint.checkpoint_dir"
            found.append(Folder("folder.checkpoints", _absolute(checkpoints), key))
        cache = self.environ.get("HF_HOME") or "~/.cache/huggingface"
        return [*found, Folder("folder.hf_cache", _absolute(cache), "slurm.hf_home (HF_HOME)")]


def load_subject(config: str | None) -> Subject:
    """Read the configuration, if there is one, and see whether Slurm's commands are here.

    Raises:
        UserError: the configuration is wrong.
    """
    loaded = None if config is None else load_config(config).config
    wanted = "auto" if loaded is None else loaded.cluster
    on_slurm = wanted == "slurm" or (wanted == "auto" and _has_slurm())
    return Subject(config, loaded, on_slurm, {**os.environ, **_given(loaded)})


def _has_slurm() -> bool:
    """Whether Slurm is meant to work here; a slurm.conf may also come from its controller."""
    if shutil.which("scontrol") is None:
        return False
    return slurm_is_configured() or ask(["scontrol", "ping"], timeout_s=_PING_S).code == 0


def _given(config: RunConfig | None) -> dict[str, str]:
    """What the configuration sets for ranks; placeholders, which may be secrets, are left out."""
    if config is None:
        return {}
    given = {**config.slurm.env, "HF_HOME": config.slurm.hf_home or ""}
    return {name: value for name, value in given.items() if value and "${" not in value}


def _absolute(path: str) -> Path:
    """Spelled out without touching the file system."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100
