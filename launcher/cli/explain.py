"""What every key of a configuration means: the command ``explain``, and docs/configuration.md."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from submitrain.config.automodel import REFUSED
from submitrain.config.document import KeyPath, dotted, dump_yaml
from submitrain.config.run import RunConfig
from submitrain.config.schema import (
    aliases,
    expected,
    homes,
    is_secret,
    keys,
    near,
    section_at,
    section_class,
    sections,
)
from submitrain.config.types import DurationS, NodeRange, Section, TargetSection, format_duration
from submitrain.errors import UserError

_UNITS = {
    "_s": "seconds",
    "_h": "hours",
    "_steps": "optimizer steps",
    "_bytes": "bytes",
    "_length": "tokens",
}
"""By the end of a key's name, which carries its unit."""


@dataclass(frozen=True)
class KeyDoc:
    """One key; all in words."""

    key: str
    doc: str
    allowed: str
    default: str
    unit: str = ""
    aliases: tuple[str, ...] = ()
    section: bool = False
    """Whether it has keys of its own."""

    @property
    def name(self) -> str:
        """The key without its section."""
        return self.key.rpartition(".")[2]


def explain(options: argparse.Namespace) -> int:
    """Print what a key means; without one, the sections."""
    if options.key is None:
        docs, text = key_docs(), section_text(())
    else:
        found = explain_key(options.key)
        docs = [found, *(key_docs(tuple(found.key.split("."))) if found.section else [])]
        text = key_text(found)
    print(json.dumps([asdict(doc) for doc in docs], indent=2) if options.json else text)
    return 0


def key_docs(above: KeyPath = ()) -> list[KeyDoc]:
    """The keys of the section at ``above``, in their order; of the top level for ``()``."""
    section = section_at(above)
    return [_doc((*above, name), info) for name, info in keys(section).items()] if section else []


def every_section() -> Iterator[tuple[KeyPath, type[Section]]]:
    """All sections, those inside others behind them."""
    for name, section in sections().items():
        yield (name,), section
        for key, info in keys(section).items():
            if (inner := section_class(info)) is not None:
                yield (name, key), inner


def explain_key(text: str) -> KeyDoc:
    """The key that ``text`` names: ``slurm.time``, an alias, or a key's bare name.

    Raises:
        UserError: nobody knows it, it is refused, or it belongs to a component.
    """
    path: KeyPath = tuple(part for part in text.strip().split(".") if part)
    if len(path) == 1 and path[0] not in keys(RunConfig):
        places = homes(str(path[0]))
        if len({sections()[place.partition(".")[0]] for place in places}) == 1:
            return explain_key(places[0])
        if places:
            raise UserError(f"explain: {text} is a key of several sections: {', '.join(places)}")
    if path in REFUSED:
        raise UserError(f"explain: {text} is no key here: {REFUSED[path]}")
    section = section_at(path[:-1])
    written = aliases(section).get(str(path[-1])) if section and path else None
    if section is None or written is None:
        raise UserError(f"explain: {_unknown(text, path)}")
    return _doc((*path[:-1], written), keys(section)[written])


def _doc(path: KeyPath, info: FieldInfo) -> KeyDoc:
    owner, section, name = section_at(path[:-1]), section_class(info), str(path[-1])
    assert owner is not None
    duration = all(item in info.metadata for item in get_args(DurationS)[1:2])
    annotated = f"{get_args(info.annotation)}{info.annotation}"
    unit = ""
    if duration:
        unit = "minutes for a bare number, as sbatch has it"
    elif "int" in annotated or "float" in annotated:
        unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    if section is not None:
        allowed = "a section, or none" if info.default is None else "a section"
    elif is_secret(path):
        allowed = "a ${VAR} placeholder or none: the value itself is never written"
    elif duration:
        allowed = (
            "a duration: minutes (90), MM:SS, HH:MM:SS, D-HH, D-HH:MM:SS, a number with a unit "
            "(90s, 30m, 24h, 2d), UNLIMITED"
        )
    elif name == "_target_":
        allowed = "text: an import path, or an alias"
    elif path == ("name",):
        allowed = "letters, digits, dots, dashes and underscores, or none"
    else:
        allowed = expected(path)
    spellings = (key for key, ours in aliases(owner).items() if ours == name)
    return KeyDoc(
        key=dotted(path),
        doc=info.description or "",
        allowed=allowed,
        default=_default(info.get_default(), duration=duration),
        unit=unit,
        aliases=tuple(key for key in spellings if key not in (name, "target")),
        section=section is not None,
    )


def _default(value: Any, *, duration: bool) -> str:
    """The default as one would write it; empty for a section."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Section):
        return ""
    if duration and isinstance(value, int):
        return format_duration(value)
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    if isinstance(value, list | dict | NodeRange):
        return str(value)
    return dump_yaml(value).strip().removesuffix("...").strip()


def _unknown(text: str, path: KeyPath) -> str:
    """What to say of a key that nobody knows, with the key that may be meant."""
    parent, word = section_at(path[:-1]), str(path[-1]) if path else ""
    if parent is None:
        above = section_at(path[:-2])
        if above is not None and str(path[-2]) in aliases(above):
            return f"no key {text}: {dotted(path[:-1])} has no keys of its own"
        top = near(str(path[0]), [*sections()], cutoff=0.6)
        rest = dotted(path[1:])
        guess = f"did you mean {top}.{rest}?" if top else f"sections are {', '.join(sections())}"
        return f"no section {path[0]}; {guess}"
    if close := near(word, [*aliases(parent)], cutoff=0.6):
        return f"no key {text}; did you mean {dotted((*path[:-1], close))}?"
    if found := homes(word):
        return f"no key {text}; {word} belongs to {' or '.join(found)}"
    if issubclass(parent, TargetSection):
        return (
            f"{text} is no key of ours: {word} is given to the component that "
            f"{dotted(path[:-1])}._target_ names, see its own documentation"
        )
    elsewhere = [f"{name}.{key}" for name, section in sections().items() for key in keys(section)]
    if hint := near(text, elsewhere, cutoff=0.7):
        return f"no key {text}; did you mean {hint}?"
    docs = [
        doc for above in [(), *(path for path, _ in every_section())] for doc in key_docs(above)
    ]
    about = [doc.key for doc in docs if len(text) > 3 and text.lower() in doc.doc.lower()]
    if about:
        return f"no key {text}; {', '.join(about[:6])} mention it"
    return f"no key {text}; {_COMMAND} explain lists all sections"


_COMMAND = "python -m launcher"
_HEAD = f"""\
# Configuration

*Written by `{_COMMAND} schema --markdown` from the types; a test holds this page to the code.*

A configuration is one YAML file. Keys and spellings are those of the NeMo AutoModel family, so its
files load unchanged. What is not written has the default below. An unknown key, a wrong value and a
setting that would have no effect are errors that name file and line.

- `{_COMMAND} explain slurm.time` tells the same in the terminal; `{_COMMAND} init`
  writes a first file for the cluster that it finds.
- `{_COMMAND} CFG.yaml optimizer.lr=1e-4` changes a key for one run; from Python
  `launch("CFG.yaml", optimizer__lr=1e-4)` or `launch("CFG.yaml", **{{"optimizer.lr": 1e-4}})`.
- `none` means "not set". `${{VAR}}` is read from the environment where it is used,
  `${{VAR,default}}` if it may be missing. Secrets are placeholders only.
- `_target_` names a component by import path; in sections that have it, further keys are the
  component's own.
- A key whose name ends in `_s` is in seconds; steps are optimizer steps. Durations are written as
  for sbatch: a bare number is minutes; `90s`, `30m`, `24h`, `1-12:00:00` say it themselves.
- Editors complete and check a file that begins with
  `# yaml-language-server: $schema=PATH/launcher/config.schema.json`, as those in `configs/` do.
"""


def key_text(doc: KeyDoc) -> str:
    """A key with everything there is to say; of a section, its keys."""
    lines, path = [f"{doc.key}: {doc.doc}"], doc.key.split(".")
    if doc.section:
        return "\n".join([*lines, "", section_text(tuple(path))])
    facts = {
        "allowed": doc.allowed,
        "unit": doc.unit,
        "default": doc.default,
        "also written": ", ".join(doc.aliases),
    }
    lines += [f"  {label:<13} {text}" for label, text in facts.items() if text]
    example = doc.default if doc.default not in ("none", "required", "") else "..."
    nested = [f"{'  ' * depth}{part}:" for depth, part in enumerate(path)]
    lines += ["", *(f"  {line}" for line in nested)]
    lines[-1] += f" {example}"
    return "\n".join([*lines, "", f"  {_COMMAND} CFG.yaml {doc.key}={example}"])


def section_text(path: KeyPath) -> str:
    """One line for every key: name, default, the first sentence of its doc."""
    docs = key_docs(path)
    width = max(len(doc.name) for doc in docs)
    room = min(16, max(len(doc.default) for doc in docs))
    lines = []
    for doc in docs:
        default = "section" if doc.section else doc.default if len(doc.default) <= room else "..."
        long = len(doc.doc) > 90
        first = doc.doc.split("; ")[0].split(": ")[0].rstrip(".") if long else doc.doc
        lines.append(f"  {doc.name:<{width}}  {default:<{room}}  {first}")
    return "\n".join([*lines, "", f"  {_COMMAND} explain {dotted((*path, 'KEY'))} tells more"])


def reference() -> str:
    """docs/configuration.md: the whole reference as Markdown."""
    lines = [_HEAD, "## Top level\n", *_table(())]
    for path, section in every_section():
        lines.append(f"## `{dotted(path)}`\n")
        if path[0] in ("validation_dataset", "validation_dataloader"):
            lines.append(f"Keys of `{dotted(path).removeprefix('validation_')}`.\n")
            continue
        lines.append(f"{' '.join((section.__doc__ or '').split())}\n")
        if issubclass(section, TargetSection):
            lines.append("Further keys are given to the component that `_target_` names.\n")
        lines += _table(path)
    return "\n".join(lines).rstrip() + "\n"


def _table(above: KeyPath) -> Iterator[str]:
    yield "| key | default | allowed | |\n|---|---|---|---|"
    for doc in key_docs(above):
        if doc.section:
            continue
        names = ", ".join(f"`{name}`" for name in doc.aliases)
        also = f" Also written {names}." if names else ""
        allowed = "a duration" if doc.allowed.startswith("a duration") else doc.allowed
        default = f"`{doc.default}`" if doc.default != "required" else "required"
        cells = (f"`{doc.name}`", default, allowed, f"{doc.doc}{also}")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""
