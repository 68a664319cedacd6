"""Read a run folder's configuration again, in the supervisor and in the ranks. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from train.config.document import read_document
from train.config.placeholders import PlaceholderError, expand
from train.config.resolve import resolve
from train.config.run import RunConfig
from train.errors import ConfigError


def load_resolved(path: Path, environ: Mapping[str, str]) -> RunConfig:
    """The RunConfig of a run folder's ``config.yaml``; placeholders come from ``environ``.

    Secrets and ``slurm.env`` stay placeholders: ``secret_environment`` reads them.

    Raises:
        ConfigError: the file is damaged, or a variable that it names is not set here.
    """
    return resolve(read_document(path), environ).config


def secret_environment(config: RunConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """What the configuration adds to the ranks' environment; never to be written anywhere.

    ``slurm.env``, then HF_HOME, HF_TOKEN and WANDB_API_KEY; an empty value adds nothing.

    Raises:
        ConfigError: a variable that one of them names is not set in ``environ``.
    """
    slurm = config.slurm
    wanted = [(f"slurm.env.{name}", name, value) for name, value in slurm.env.items()]
    wanted += [
        ("slurm.hf_home", "HF_HOME", slurm.hf_home or ""),
        ("slurm.hf_token", "HF_TOKEN", slurm.hf_token or ""),
        ("slurm.wandb_key", "WANDB_API_KEY", slurm.wandb_key or ""),
    ]
    found, problems = {}, []
    for key, name, value in wanted:
        try:
            found[name] = expand(value, environ)
        except PlaceholderError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError(*problems)
    return {name: value for name, value in found.items() if value or name in slurm.env}
