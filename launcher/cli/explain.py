"""What every key of a configuration means, from the types alone: for ``explain`` and the reference.

Pure. Imports no torch.

The documentation of keys as text for a terminal, and as the reference in docs. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from submitrain.config import RunConfig
from submitrain.config.automodel import REFUSED
from submitrain.config.document import KeyPath, dotted, dump_yaml
from submitrain.config.schema import (
    aliases,
    expected,
    homes,
    is_secret,
    keys,
    near,
    section_class,
    sections,
)
from submitrain.config.types import (
    DurationS,
    NodeCount,
    NodeRange,
    Section,
    TargetSection,
    format_duration,
)
from submitrain.errors import UserError

DURATION_WORDS = (
    "a duration: minutes (90), MM:SS, HH:MM:SS, D-HH, D-HH:MM:SS, a number with a unit (90s, 30m, "
    "24h, 2d), UNLIMITED"
)
_UNITS = {
    "_s": "seconds",
    "_h": "hours",
    "_steps": "optimizer steps",
    "_bytes": "bytes",
    "_size": "",
    "_length": "tokens",
}
"""By the end of a key's name, which carries its unit."""
_MOST_ABOUT = 6


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

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "aliases": list(self.aliases)}


def key_docs(above: KeyPath = ()) -> list[KeyDoc]:
    """The keys of the section at ``above``, in their order; of the top level for ``()``."""
    section = _section_at(above)
    return [_doc((*above, name), info) for name, info in keys(section).items()] if section else []


def every_section() -> Iterator[tuple[KeyPath, type[Section]]]:
    """All sections, those inside others behind them."""
    for name, section in sections().items():
        yield (name,), section
        for key, info in keys(section).items():
            inner = section_class(info.annotation)
            if inner is not None:
                yield (name, key), inner


def explain_key(text: str) -> KeyDoc:
    """The key that ``text`` names: ``slurm.time``, an alias, or a key's bare name.

    Raises:
        UserError: nobody knows it, it is refused, or it belongs to a component.
    """
    path: KeyPath = tuple(part for part in text.strip().split(".") if part)
    if not path:
        raise UserError(_unknown(text, path))
    if len(path) == 1 and path[0] not in keys(RunConfig):
        places = homes(str(path[0]))
        if len({sections()[place.partition(".")[0]] for place in places}) == 1:
            return explain_key(places[0])
        if places:
            raise UserError(f"explain: {text} is a key of several sections: {', '.join(places)}")
    if path in REFUSED:
        raise UserError(f"explain: {text} is no key here: {REFUSED[path]}")
    section = _section_at(path[:-1])
    written = aliases(section).get(str(path[-1])) if section else None
    if section is None or written is None:
        raise UserError(_unknown(text, path))
    return _doc((*path[:-1], written), keys(section)[written])


def _section_at(path: KeyPath) -> type[Section] | None:
    section: type[Section] | None = RunConfig
    for part in path:
        info = keys(section).get(str(part)) if section else None
        section = section_class(info.annotation) if info else None
    return section


def _doc(path: KeyPath, info: FieldInfo) -> KeyDoc:
    section, inner = _section_at(path[:-1]), section_class(info.annotation)
    assert section is not None
    name = str(path[-1])
    spellings = (key for key, ours in aliases(section).items() if ours == name)
    return KeyDoc(
        key=dotted(path),
        doc=info.description or "",
        allowed="a section, or none" if inner and info.default is None else _allowed(path, info),
        default=default_words(info),
        unit=_unit(name, info),
        aliases=tuple(key for key in spellings if key not in (name, "target")),
        section=inner is not None,
    )


def _allowed(path: KeyPath, info: FieldInfo) -> str:
    if section_class(info.annotation) is not None:
        return "a section"
    if is_secret(path):
        return "a ${VAR} placeholder or none: the value itself is never written"
    if _is(info, DurationS):
        return DURATION_WORDS
    if _is(info, NodeCount):
        return "an integer >= 1 or a range such as 2-4"
    if path[-1] == "_target_":
        return "text: an import path, or an alias"
    words = expected(path)
    if path == ("name",):
        return "letters, digits, dots, dashes and underscores, or none"
    return words


def _is(info: FieldInfo, kind: Any) -> bool:
    return all(item in info.metadata for item in get_args(kind)[1:2])


def _unit(name: str, info: FieldInfo) -> str:
    if _is(info, DurationS):
        return "minutes for a bare number, as sbatch has it"
    text = " ".join(map(str, get_args(info.annotation))) + str(info.annotation)
    if "int" not in text and "float" not in text:
        return ""
    return next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")


def default_words(info: FieldInfo) -> str:
    """The default as one would write it; empty for a section."""
    value = info.get_default()
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Section):
        return ""
    if isinstance(value, NodeRange):
        return str(value)
    if _is(info, DurationS) and isinstance(value, int):
        return format_duration(value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, list | dict):
        return str(value)
    return dump_yaml(value).strip().removesuffix("...").strip()


def explained(path: KeyPath) -> bool:
    """Whether ``path`` is a key exactly as it stands."""
    section = _section_at(path[:-1])
    return section is not None and str(path[-1]) in aliases(section)


def _unknown(text: str, path: KeyPath) -> str:
    parent = _section_at(path[:-1]) if path else RunConfig
    if parent is None and explained(path[:-1]):
        return f"explain: no key {text}: {dotted(path[:-1])} has no keys of its own"
    if parent is None:
        top = near(str(path[0]), [*sections()], cutoff=0.6)
        rest = ".".join(str(part) for part in path[1:])
        guess = f"did you mean {top}.{rest}?" if top else f"sections are {', '.join(sections())}"
        return f"explain: no section {path[0]}; {guess}"
    if path and (close := near(str(path[-1]), [*aliases(parent)], cutoff=0.6)):
        return f"explain: no key {text}; did you mean {dotted((*path[:-1], close))}?"
    found = homes(str(path[-1])) if path else []
    if found:
        return f"explain: no key {text}; {path[-1]} belongs to {' or '.join(found)}"
    if path and issubclass(parent, TargetSection):
        return (
            f"explain: {text} is no key of ours: {path[-1]} is given to the component that "
            f"{dotted(path[:-1])}._target_ names, see its own documentation"
        )
    elsewhere = [f"{section}.{key}" for section in sections() for key in keys(sections()[section])]
    hint = near(text, elsewhere, cutoff=0.7)
    more = f"did you mean {hint}?" if hint else "python -m launcher explain lists all sections"
    if not hint and (about := _about(text)):
        more = f"{', '.join(about[:_MOST_ABOUT])} mention it"
    return f"explain: no key {text}; {more}"


def _about(word: str) -> list[str]:
    """Keys whose documentation mentions a word."""
    paths = [(), *(path for path, _ in every_section())]
    docs = [one for path in paths for one in key_docs(path)]
    return [one.key for one in docs if word.lower() in one.doc.lower()] if len(word) > 3 else []


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
    lines = [f"{doc.key}: {doc.doc}"]
    if doc.section:
        return "\n".join([*lines, "", section_text(tuple(doc.key.split(".")))])
    facts = {
        "allowed": doc.allowed,
        "unit": doc.unit,
        "default": doc.default,
        "also written": ", ".join(doc.aliases),
    }
    lines += [f"  {label:<13} {text}" for label, text in facts.items() if text]
    path = doc.key.split(".")
    nested = "\n".join(
        f"{'  ' * depth}{part}:{_example(doc) if depth == len(path) - 1 else ''}"
        for depth, part in enumerate(path)
    )
    lines += ["", *(f"  {line}" for line in nested.splitlines())]
    lines += ["", f"  {_COMMAND} CFG.yaml {doc.key}={_example(doc).strip() or '...'}"]
    return "\n".join(lines)


def _example(doc: KeyDoc) -> str:
    """The default, where it says how a value looks."""
    shown = doc.default if doc.default not in ("none", "required", "") else "..."
    return f" {shown}"


def section_text(path: KeyPath) -> str:
    """One line for every key: name, default, the first sentence of its doc."""
    docs = key_docs(path)
    width = max(len(_last(doc)) for doc in docs)
    room = min(16, max(len(doc.default) for doc in docs))
    lines = []
    for doc in docs:
        default = doc.default if len(doc.default) <= room else "..."
        shown = "section" if doc.section else default
        lines.append(f"  {_last(doc):<{width}}  {shown:<{room}}  {_first_sentence(doc.doc)}")
    more = f"{_COMMAND} explain {'.'.join([*map(str, path), 'KEY'])}"
    return "\n".join([*lines, "", f"  {more} tells more"])


def _last(doc: KeyDoc) -> str:
    return doc.key.rpartition(".")[2]


def _first_sentence(text: str) -> str:
    return text.split("; ")[0].split(": ")[0].rstrip(".") if len(text) > 90 else text


def reference() -> str:
    """The whole reference as Markdown."""
    return "\n".join([_HEAD, *_top_level(), *_sections()]).rstrip() + "\n"


def _top_level() -> Iterator[str]:
    yield "## Top level\n"
    yield from _table([doc for doc in key_docs() if not doc.section])


def _sections() -> Iterator[str]:
    for path, section in every_section():
        name = dotted(path)
        yield f"## `{name}`\n"
        if name == "validation_dataset" or name == "validation_dataloader":
            yield f"Keys of `{name.removeprefix('validation_')}`.\n"
            continue
        yield f"{_paragraph(section.__doc__ or '')}\n"
        if issubclass(section, TargetSection):
            yield "Further keys are given to the component that `_target_` names.\n"
        yield from _table([doc for doc in key_docs(path) if not doc.section])


def _paragraph(text: str) -> str:
    return " ".join(text.strip().split())


def _table(docs: list[KeyDoc]) -> Iterator[str]:
    yield "| key | default | allowed | |\n|---|---|---|---|"
    for doc in docs:
        also = (
            f" Also written {', '.join(f'`{name}`' for name in doc.aliases)}."
            if doc.aliases
            else ""
        )
        allowed = "a duration" if doc.allowed.startswith("a duration") else doc.allowed
        cells = (f"`{_last(doc)}`", _code(doc.default), allowed, f"{doc.doc}{also}")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _code(text: str) -> str:
    return "required" if text == "required" else f"`{text}`" if text else ""
