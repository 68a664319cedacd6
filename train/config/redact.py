"""What a secret looks like when somebody writes it out, so that no message repeats it.

Imports nothing of this project.
"""

from __future__ import annotations

import re

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
