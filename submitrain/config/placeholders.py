"""Environment placeholders (``${VAR}``, ``${VAR,default}``, the same with ``oc.env:``) and secrets.

Files keep the placeholder; the value is read where it is used. What looks like a secret is never
repeated in a message. Imports nothing of this project.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PLACEHOLDER = re.compile(r"\$\{(?:oc\.env:)?([A-Za-z_][A-Za-z0-9_]*)(?:,([^{}]*))?\}")
FORMS = "${VAR}, ${VAR,default}, ${oc.env:VAR} or ${oc.env:VAR,default}"

_SECRET_WORDS = frozenset(
    {"KEY", "APIKEY", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE"}
    | {"CREDENTIAL", "CREDENTIALS"}
)


class PlaceholderError(ValueError):
    """A placeholder is malformed, or its variable is not set and has no default."""


def placeholder_names(text: str) -> list[str]:
    """Names of the environment variables that ``text`` refers to."""
    return [match.group(1) for match in PLACEHOLDER.finditer(text)]


def names_secret(variable: str) -> bool:
    """Whether a variable's name says that it holds a secret: HF_TOKEN does, TOKENIZER does not."""
    return any(
        word in _SECRET_WORDS or word.endswith(("TOKEN", "PASSWORD"))
        for word in variable.upper().split("_")
    )


def expand(text: str, environ: Mapping[str, str]) -> str:
    """``text`` with every placeholder replaced.

    Raises:
        PlaceholderError: a variable is missing without a default, or ``${`` stands for something
            else.
    """
    rest = PLACEHOLDER.sub("", text)
    if "${" in rest:
        start = rest.index("${")
        raise PlaceholderError(
            f"expected {FORMS}, got {rest[start : start + 40]!r}; references to other keys are "
            "not supported: write the value"
        )
    missing = [
        match.group(1)
        for match in PLACEHOLDER.finditer(text)
        if match.group(1) not in environ and match.group(2) is None
    ]
    if missing:
        name = missing[0]
        raise PlaceholderError(
            f"the environment variable {name} is not set; export {name}=... or write a default: "
            f"${{{name},default}}"
        )
    return PLACEHOLDER.sub(lambda m: environ.get(m.group(1), (m.group(2) or "").strip()), text)


WANDB = "a Weights & Biases key"
_LITERALS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    WANDB: re.compile(r"(?<![\w/.@-])[0-9a-f]{40}(?![\w/.-])|\bwandb_v\d_\w{20,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "an API key": re.compile(
        r"\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bglpat-[\w-]{20,}|\bnvapi-[\w-]{20,}"
    ),
    "a Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


def looks_secret(text: str) -> str | None:
    """What kind of secret ``text`` seems to hold, None if none."""
    return next((kind for kind, pattern in _LITERALS.items() if pattern.search(text)), None)


def hidden(text: str) -> str:
    """``text`` with everything that looks like a secret replaced."""
    for pattern in _LITERALS.values():
        text = pattern.sub("(not shown)", text)
    return text
