"""``init``, ``explain`` and ``completion``: the commands by which one learns the others."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from train.errors import ClusterError, UserError

SCHEMA = Path(__file__).with_name("config.schema.json")
"""JSON Schema of configuration files, generated; editors read it by the files' first line."""


def init(options: argparse.Namespace) -> int:
    """Write a first configuration for the cluster, or the machine, that is here."""
    target = None if options.output == "-" else Path(options.output).expanduser()
    if target is not None:
        _refuse_to_overwrite(target, force=options.force)
    text = _text(options.cluster, str(options.output))
    if target is None:
        sys.stdout.write(text)
        return 0
    try:
        target.write_text(text)
    except OSError as error:
        raise UserError(f"--output: {target} cannot be written: {error.strerror}") from error
    print(f"wrote {target} {_purpose(text)}; next:")
    print(f"  python -m launcher plan {target}")
    print(f"  python -m launcher {target}")
    return 0


def _purpose(text: str) -> str:
    """What the file is for, as its head says."""
    found = re.search(r"launcher init` (for .+)\.$", text, re.MULTILINE)
    return found[1] if found else ""


def _refuse_to_overwrite(target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise UserError(f"--output: expected a file to write, got the folder {target}")
    if target.exists() and not force:
        raise UserError(
            f"--output: {target} exists already; name another file, or overwrite it with --force"
        )


def _text(wanted: str, name: str) -> str:
    from launcher.first_config import local_config, slurm_config
    from launcher.machine import this_machine
    from launcher.offer import ask_offer
    from launcher.submit import choose_cluster

    name = "CFG.yaml" if name == "-" else name
    if choose_cluster(wanted).name == "local":
        gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
        return local_config(this_machine(), gpus, name=name, schema=str(SCHEMA))
    offer = ask_offer()
    best = offer.best()
    if best is None:
        raise ClusterError(
            f"init: Slurm names no partition ({offer.problem or 'sinfo lists none'}); write for "
            "this machine with --cluster local"
        )
    return slurm_config(offer, best, name=name, schema=str(SCHEMA))


def explain(options: argparse.Namespace) -> int:
    """Print what a key means; without one, the sections."""
    from launcher.keydocs import explain_key, key_docs
    from launcher.keydocs_text import key_text, section_text

    if options.key is None:
        docs = key_docs()
        text = section_text(())
    else:
        found = explain_key(options.key)
        docs = [found, *(key_docs(tuple(found.key.split("."))) if found.section else [])]
        text = key_text(found)
    print(json.dumps([doc.as_json() for doc in docs], indent=2) if options.json else text)
    return 0


def completion(options: argparse.Namespace) -> int:
    """Print a shell's script, or what may follow the words that its script passes on."""
    from launcher.completion import SCRIPTS, candidates

    if options.shell == "words":
        print("\n".join(candidates(options.words, Path.cwd())))
        return 0
    if options.words:
        raise UserError(f"completion: expected a shell only, got {' '.join(options.words)} as well")
    sys.stdout.write(SCRIPTS[options.shell])
    return 0
