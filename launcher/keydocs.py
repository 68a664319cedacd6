"""What every key of a configuration means, from the types alone: for ``explain`` and the reference.

Pure. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from train.config import RunConfig
from train.config.base import Section, TargetSection
from train.config.document import KeyPath, dotted, dump_yaml
from train.config.later import REFUSED
from train.config.schema import (
    aliases,
    expected,
    homes,
    is_secret,
    keys,
    near,
    section_class,
    sections,
)
from train.config.types import DurationS, NodeCount, NodeRange, format_duration
from train.errors import UserError

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
