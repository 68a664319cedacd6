"""The record of a launch: who, when, from where, with which code and packages. Never a secret.

Everything that the client writes as text goes through a ``Redactor`` first.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from submitrain.config.placeholders import names_secret
from submitrain.launcher.checks.node_software import package_versions

RECORD_VERSION = 1
REDACTED = "[redacted]"
GIT_TIMEOUT_S = 20.0
_SHORTEST_SECRET = 8
"""Shorter values ("1", "true") would riddle every text with redactions and hide nothing."""
Via = Literal["cli", "notebook", "python"]


@dataclass(frozen=True)
class Redactor:
    """Knows this environment's secret values and takes them out of texts."""

    values: tuple[str, ...]

    @classmethod
    def of(cls, environ: Mapping[str, str], names: Iterable[str] = ()) -> Redactor:
        """Values of the variables in ``names``, and of all whose name looks like a secret's."""
        named = {environ[name] for name in names if environ.get(name)}
        guessed = {
            value
            for name, value in environ.items()
            if names_secret(name) and len(value) >= _SHORTEST_SECRET and not _is_path(value)
        }
        return cls(tuple(sorted(named | guessed, key=len, reverse=True)))

    def text(self, text: str) -> str:
        """``text`` with every known secret value replaced."""
        for value in self.values:
            text = text.replace(value, REDACTED)
        return text

    def holds_secret(self, data: bytes) -> bool:
        """Whether a known secret value is in ``data``."""
        return any(value.encode() in data for value in self.values)

    def argument(self, argument: str) -> str:
        """One command line argument; of ``a.my_token=x`` the value goes, known or not."""
        key, equals, value = argument.partition("=")
        if equals and names_secret(key.rpartition(".")[2]) and not value.startswith("${"):
            return f"{key}={REDACTED}"
        return self.text(argument)


def _is_path(value: str) -> bool:
    try:
        return value.startswith("/") and Path(value).exists()
    except OSError:
        return False


@dataclass(frozen=True)
class GitState:
    """The repository around a folder: commit, branch, and what was not committed."""

    commit: str | None
    branch: str | None
    remote: str | None
    dirty: bool
    diff: bytes

    def as_json(self) -> dict[str, Any]:
        """For the record; the diff itself is a file of the code snapshot."""
        return {
            "commit": self.commit,
            "branch": self.branch,
            "remote": self.remote,
            "dirty": self.dirty,
            "diff_sha256": hashlib.sha256(self.diff).hexdigest() if self.diff else None,
        }


def git(folder: Path, *arguments: str) -> bytes | None:
    """Output of a git command, or None when git, or a repository, is not there or will not say."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def read_git(folder: Path) -> GitState | None:
    """State of the repository that ``folder`` is in; None outside a repository."""
    if git(folder, "rev-parse", "--is-inside-work-tree") != b"true\n":
        return None
    status = git(folder, "status", "--porcelain") or b""
    diff = git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or b""
    remote = _line(git(folder, "remote", "get-url", "origin"))
    return GitState(
        commit=_line(git(folder, "rev-parse", "HEAD")),
        branch=_line(git(folder, "rev-parse", "--abbrev-ref", "HEAD")),
        remote=re.sub(r"//[^/@]*@", "//", remote) if remote else None,
        dirty=bool(status.strip()),
        diff=diff,
    )


def _line(output: bytes | None) -> str | None:
    return output.decode(errors="replace").strip() or None if output else None


def make_record(
    *,
    redactor: Redactor,
    git_state: GitState | None,
    workdir: Path,
    command: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``record.json``; ``facts`` are what the launch itself knows (cluster, ...)."""
    return {
        "v": RECORD_VERSION,
        "who": {"user": user_name(), "uid": os.getuid(), "host": socket.gethostname()},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "via": via(),
        "command": [redactor.argument(argument) for argument in command],
        "workdir": redactor.text(str(workdir)),
        "git": git_state.as_json() if git_state else None,
        "python": platform.python_version(),
        "executable": sys.executable,
        "os": platform.platform(),
        "packages": package_versions(),
        **facts,
    }


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return getattr(running, "kernel", None) is not None


def via() -> Via:
    """How this process came to launch: our command line, a notebook, or a Python program."""
    if in_notebook():
        return "notebook"
    # Our own entry points; a user's script that is also called cli.py does not import this one.
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if (
        getattr(main, "name", None) == "submitrain.launcher.__main__"
        or Path(sys.argv[0]).name == "submitrain"
    ):
        return "cli"
    return "python"


def command_line() -> list[str]:
    """The command that runs this process, as a user would type it."""
    if via() == "cli":
        return ["python", "-m", "launcher", *sys.argv[1:]]
    return list(sys.argv)


def user_name() -> str:
    """The user's name; the number of one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A uid without a name, as in many containers.
        return str(os.getuid())
