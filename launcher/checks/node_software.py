"""Preflight: versions of software on a node, and against the other nodes. Standard library only."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from submitrain.imports import IMPORT_ROOT
from submitrain.launcher.checks.finding import Finding, fail, ok, unknown, warn

PACKAGES = (
    "submitrain",
    "submitit",
    "torch",
    "transformers",
    "tokenizers",
    "torchdata",
    "safetensors",
    "datasets",
    "numpy",
    "peft",
    "wandb",
    "liger-kernel",
    "flash-attn",
    "pydantic",
)
"""Packages whose version a run records."""
ID = "node.software"
GIT_S = 10.0
_MOST_NAMED = 4
"""Differences that are named."""
_GRAVE = ("python", "our code", "packages")
"""What must be the same everywhere; other differences are worth a warning."""
_PACKAGE = "packages/"


def read_versions() -> dict[str, str]:
    """Versions on this node by name; those of installed packages begin with ``packages/``."""
    return {
        "python": sys.version.split()[0],
        "our code": _code_hash(),
        "commit": _commit(),
        "driver": _driver(),
        "kernel": os.uname().release,
        **{f"{_PACKAGE}{name}": version for name, version in _installed().items()},
    }


def package_versions() -> dict[str, str]:
    """Versions of ``PACKAGES`` from their metadata, without those that are not installed."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _installed() -> dict[str, str]:
    """Every installed package, by the name of its metadata's folder: reading that is quick."""
    found: dict[str, str] = {}
    for entry in reversed(sys.path):
        with suppress(OSError):
            for path in Path(entry or ".").glob("*.dist-info"):
                name, _, version = path.stem.partition("-")
                found[name.lower().replace("_", "-")] = version
    return found | package_versions()


def _code_hash() -> str:
    """Hash of the source files of our packages, as far as this process would import them."""
    digest = hashlib.sha256()
    for folder, _, names in sorted(os.walk(IMPORT_ROOT / "submitrain", followlinks=True)):
        for name in sorted(name for name in names if name.endswith(".py")):
            path = Path(folder, name)
            digest.update(str(path.relative_to(IMPORT_ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str:
    """Commit of the folder that the job was started from; empty outside a repository."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_S,
            check=True,
        )
        return done.stdout.strip()[:12]
    return ""


def _driver() -> str:
    """Version of the GPU's kernel driver; empty where there is none."""
    for name in ("nvidia", "amdgpu"):
        with suppress(OSError):
            return f"{name} {Path('/sys/module', name, 'version').read_text().strip()}"
    return ""


def compare_versions(
    nodes: Mapping[str, Mapping[str, str]], recorded: Mapping[str, str] | None = None
) -> dict[str, Finding]:
    """The versions of every node against those of most nodes.

    Where two versions are equally frequent, ``recorded`` (the packages of the launch) decides;
    where nothing decides, nobody can tell who is wrong, and all are warned.
    """
    if len(nodes) < 2:
        return {node: ok(ID, "no other node to compare with") for node in nodes}
    known = {node: versions for node, versions in nodes.items() if versions}
    found = {node: unknown(ID, "it does not tell its versions") for node in nodes}
    if len(known) < 2:
        return found | {node: unknown(ID, "no other node tells its versions") for node in known}
    usual, undecided = _usual(known, recorded or {})
    return found | {node: _compare(one, usual, undecided) for node, one in known.items()}


def _usual(
    nodes: Mapping[str, Mapping[str, str]], recorded: Mapping[str, str]
) -> tuple[dict[str, str], set[str]]:
    """The version that most nodes have of everything, and the names without a majority."""
    usual: dict[str, str] = {}
    undecided = set()
    for name in sorted({name for versions in nodes.values() for name in versions}):
        counts = Counter(versions.get(name, "") for versions in nodes.values()).most_common()
        usual[name] = counts[0][0]
        if len(counts) > 1 and counts[0][1] == counts[1][1]:
            launched = recorded.get(name.removeprefix(_PACKAGE))
            if launched is not None and launched in dict(counts):
                usual[name] = launched
            else:
                undecided.add(name)
    return usual, undecided


def _compare(versions: Mapping[str, str], usual: Mapping[str, str], undecided: set[str]) -> Finding:
    def label(name: str) -> str:
        return name.removeprefix(_PACKAGE)

    differing = [n for n in usual if versions.get(n, "") != usual[n] and n not in undecided]
    grave = [name for name in differing if name.partition("/")[0] in _GRAVE]
    if grave:
        told = "; ".join(
            f"{label(n)} is {versions.get(n) or 'missing'}, {usual[n] or 'absent'} elsewhere"
            for n in grave[:_MOST_NAMED]
        )
        more = f"; {len(grave) - _MOST_NAMED} more differ" if len(grave) > _MOST_NAMED else ""
        remedy = "use one environment for all nodes: on a shared file system, or an image"
        return fail(ID, told + more, remedy)
    if undecided:
        told = ", ".join(f"{label(n)} {versions.get(n) or 'missing'}" for n in sorted(undecided))
        said = f"nodes differ, and nobody has a majority: {told}"
        return warn(ID, said, "use one environment for all nodes")
    if differing:
        told = ", ".join(
            f"{label(name)} {versions.get(name) or 'none'} ({usual[name] or 'none'} elsewhere)"
            for name in differing
        )
        return warn(ID, told, "tell the administrators: nodes of a partition should be alike")
    return ok(ID, f"the same on all nodes ({len(versions)} versions)")
