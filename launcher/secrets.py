"""Keep secrets out of every file: literal ones are refused, named ones only where they are safe.

Values that look like a secret are never shown. Pure; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from train.config.document import Document, KeyPath
from train.config.placeholders import names_secret, placeholder_names
from train.config.redact import WANDB, looks_secret
from train.config.resolve import Problems, in_our_spelling
from train.config.schema import ENVIRONMENT_ONLY, VERBATIM


def refuse_secrets(document: Document) -> None:
    """Refuse literal secrets anywhere, and secret variables in what ends in the sbatch text.

    Raises:
        ConfigError: one line for each, without the value.
    """
    document, _ = in_our_spelling(document)
    problems = Problems(document)
    for path, text in _texts(document.tree, ()):
        problem = _literal(path, text) or _in_sbatch(path, text)
        if problem:
            problems.add(path, problem)
    problems.raise_any()


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))
    elif isinstance(value, str):
        yield path, value


def _literal(path: KeyPath, text: str) -> str | None:
    kind = looks_secret(text)
    if kind == WANDB and "revision" in str(path[-1]):
        return None
    if kind is None and path[:2] == ("slurm", "env") and len(path) > 2:
        named = names_secret(str(path[2])) and text and not placeholder_names(text)
        kind = f"the value of {path[2]}" if named else None
    if kind is None:
        return None
    return (
        f"expected a placeholder such as ${{HF_TOKEN}}, got {kind} (not shown); export it as an "
        "environment variable, name that here, and revoke the value if this file was shared"
    )


def _in_sbatch(path: KeyPath, text: str) -> str | None:
    if path[0] != "slurm" or path[:2] in ENVIRONMENT_ONLY or path[:2] in VERBATIM:
        return None
    named = [name for name in placeholder_names(text) if names_secret(name)]
    if not named:
        return None
    return (
        f"expected nothing secret, got ${{{named[0]}}}; this key ends in the sbatch text, which "
        f"others can read: pass it as slurm.env.{named[0]}: ${{{named[0]}}}"
    )
