"""From a document to a RunConfig: aliases, placeholders, types; every problem with its place.

Also the way back: ``written_tree`` is what a run folder keeps, and ``load_resolved`` reads it again
in the supervisor and in the ranks. The environment is always an argument. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from submitrain.config.automodel import STDLIB, TEXT, translate
from submitrain.config.checks import RECIPE_KEYS, RECIPE_SECTIONS
from submitrain.config.document import (
    Document,
    KeyPath,
    dotted,
    read_document,
    resolve_scalar,
)
from submitrain.config.placeholders import (
    PlaceholderError,
    expand,
    hidden,
    names_secret,
    placeholder_names,
)
from submitrain.config.run import RunConfig
from submitrain.config.schema import (
    ENVIRONMENT_ONLY,
    VERBATIM,
    aliases,
    allows,
    expected,
    field_at,
    is_free,
    is_secret,
    sections,
    unknown_key,
)
from submitrain.config.types import none_word
from submitrain.errors import ConfigError

MAX_INT = 2**63 - 1
SECRET_VARIABLES = {"hf_home": "HF_HOME", "hf_token": "HF_TOKEN", "wandb_key": "WANDB_API_KEY"}
"""Variable of the ranks by the key of ``slurm`` that says its value."""


@dataclass
class Problems:
    """Collects what is wrong with a document, one line for each path."""

    document: Document
    found: dict[KeyPath, str] = field(default_factory=dict)

    def add(self, path: KeyPath, text: str) -> None:
        """Note a problem; the first one of a path is kept."""
        self.found.setdefault(path, text)

    def add_lines(self, lines: Iterable[str]) -> None:
        """Note lines of the form ``section.key: text``."""
        for line in lines:
            key, _, text = line.partition(": ")
            self.add(tuple(key.split(".")), text)

    def covers(self, path: KeyPath) -> bool:
        """Whether ``path`` or a part above it has a problem already."""
        return any(path[:end] in self.found for end in range(len(path) + 1))

    def raise_any(self) -> None:
        """Raise all problems as one ConfigError, in the document's order.

        A line is ``slurm.nodes: expected an integer >= 1, got 0 (configs/a.yaml:12)``.
        """
        if not self.found:
            return
        order = {path: index for index, path in enumerate(self.document.marks)}
        lines = []
        for path, text in sorted(self.found.items(), key=lambda it: order.get(it[0], len(order))):
            mark = self.document.mark(path)
            key = mark.spelled if path in order and mark.spelled else dotted(path)
            lines.append(f"{key or 'configuration'}: {text} ({mark.where})")
        raise ConfigError(*lines)


@dataclass(frozen=True)
class Resolved:
    """A valid configuration, and the document it came from with our spelling of every key."""

    config: RunConfig
    document: Document


def resolve(document: Document, environ: Mapping[str, str]) -> Resolved:
    """Check ``document`` and fill in defaults; placeholders come from ``environ``.

    Raises:
        ConfigError: all problems found, one line each.
    """
    config, problems = examine(document, environ)
    problems.raise_any()
    assert config is not None
    return Resolved(config, problems.document)


def examine(document: Document, environ: Mapping[str, str]) -> tuple[RunConfig | None, Problems]:
    """The same without raising: None where there are problems; these know our spelling of it."""
    document, clashes = in_our_spelling(translate(document).document)
    problems = Problems(document)
    for path, text in clashes.items():
        problems.add(path, text)
    tree = _expanded(document.tree, (), environ, problems)
    tree = _coerced(tree, problems)
    return _validated(tree, problems), problems


def in_our_spelling(document: Document) -> tuple[Document, dict[KeyPath, str]]:
    """The document with aliases replaced (``seq_length`` → ``max_length``), and clashes."""
    clashes: dict[KeyPath, str] = {}
    tree: dict[str, Any] = {}
    renamed: dict[KeyPath, KeyPath] = {}
    for name, value in document.tree.items():
        section = sections().get(name)
        if section is None or not isinstance(value, dict):
            empty = section and value is None and not _may_be_none(name)
            tree[name] = {} if empty else value
            continue
        ours: dict[str, Any] = {}
        for key, item in value.items():
            written = aliases(section).get(str(key), str(key))
            if written in ours:
                clashes[(name, written)] = (
                    f"{key} is another spelling of the same key, and both are given; keep one"
                )
            ours[written] = item
            if written != key:
                renamed[(name, key)] = (name, written)
        tree[name] = ours
    kept = {path: mark for path, mark in document.marks.items() if path[:2] not in renamed}
    for path, mark in document.marks.items():
        if new := renamed.get(path[:2]):
            spelled = dotted(path) if len(path) == 2 else mark.spelled
            kept[(*new, *path[2:])] = replace(mark, spelled=spelled)
    return Document(document.name, tree, kept), clashes


def _may_be_none(name: str) -> bool:
    return allows(RunConfig.model_fields[name], type(None))


def _expanded(value: Any, path: KeyPath, environ: Mapping[str, str], problems: Problems) -> Any:
    """``value`` with its placeholders replaced, apart from those that are read elsewhere."""
    if path[:2] in VERBATIM:
        return value
    if isinstance(value, dict):
        return {k: _expanded(v, (*path, k), environ, problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(v, (*path, i), environ, problems) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        text = expand(value, environ)
    except PlaceholderError as error:
        if not is_secret(path) or placeholder_names(value):
            problems.add(path, str(error))
        return value
    if path[:2] in ENVIRONMENT_ONLY:
        return value
    return resolve_scalar(text) if is_free(path) else text


def _coerced(tree: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """Values in the type their field declares, where YAML cannot know it."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in sections():
            result[name] = _scalar(value, (name,), problems)
        elif isinstance(value, dict):
            result[name] = {k: _scalar(v, (name, k), problems) for k, v in value.items()}
        else:
            result[name] = none_word(value) if _may_be_none(name) else value
    return result


def _scalar(value: Any, path: KeyPath, problems: Problems) -> Any:
    info = field_at(path)
    if info is None:
        return value
    if isinstance(value, str) and allows(info, type(None)):
        value = none_word(value)
    number = allows(info, int) or allows(info, float)
    if isinstance(value, bool) and number and not allows(info, bool):
        problems.add(path, f"expected {expected(path)}, got {str(value).lower()}")
    elif isinstance(value, int) and abs(value) > MAX_INT:
        problems.add(path, f"expected {expected(path)}, got {value}, which is over 64 bits")
    elif isinstance(value, bool | int | float) and not number and allows(info, str):
        return _as_written(value, path, problems.document)
    elif isinstance(value, list) and info.annotation == list[str]:
        return [_as_written(item, (*path, i), problems.document) for i, item in enumerate(value)]
    elif isinstance(value, dict) and info.annotation == dict[str, str]:
        return {k: _as_written(v, (*path, k), problems.document) for k, v in value.items()}
    return value


def _as_written(value: Any, path: KeyPath, document: Document) -> Any:
    """Text for a number or truth that stands where text is expected (``job_name: 1e5``)."""
    if not isinstance(value, bool | int | float):
        return value
    text = document.marks[path].text if path in document.marks else None
    return text if text is not None else str(value)


def _validated(tree: dict[str, Any], problems: Problems) -> RunConfig | None:
    """The configuration, or None after noting what pydantic and the cross-checks found."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        details = error.errors(include_url=False)
    for detail in details:
        _note(detail, tree, problems)
    unknown = {detail["loc"] for detail in details if detail["type"] == "extra_forbidden"}
    if len(unknown) == len(details):  # without them the sections can be checked against each other
        rest = {
            name: {k: v for k, v in value.items() if (name, k) not in unknown}
            if isinstance(value, dict)
            else value
            for name, value in tree.items()
            if (name,) not in unknown
        }
        try:
            RunConfig.model_validate(rest)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                _note(detail, tree, problems)
    return None


def _note(detail: ErrorDetails, tree: dict[str, Any], problems: Problems) -> None:
    """Note one of pydantic's errors in our words, at the key that it is about."""
    kind, loc = detail["type"], detail["loc"]
    if not loc:
        problems.add_lines(str(detail["ctx"]["error"]).split("\n"))
        return
    path: KeyPath = ()
    value: Any = tree
    for part in loc:  # the end of pydantic's path may name branches of a union
        inside = isinstance(value, dict) and part in value
        if not inside and not (isinstance(value, list) and isinstance(part, int)):
            break
        path, value = (*path, part), value[part]
    if kind == "missing":
        path = (*path, loc[-1])
    if problems.covers(path):
        return
    if kind == "extra_forbidden":
        text = unknown_key(path)
    elif kind == "missing":
        info = field_at(path)
        doc = f": {info.description}" if info else ""
        text = f"expected {expected(path)}, got nothing; this key is required{doc}"
    elif kind == "value_error":
        text = str(detail["ctx"]["error"])
    else:
        text = f"expected {expected(path)}, got {_shown(value, problems.document.get(path))}"
    problems.add(path, text)


def _shown(value: Any, written: Any) -> str:
    """The refused value, and the placeholder it came from; a secret's value is not shown."""
    if value is None:
        text = "none"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, dict | list):
        text = "a mapping" if isinstance(value, dict) else "a list"
    else:
        text = hidden(repr(value))
        text = text if len(text) <= 80 else text[:77] + "..."
    names = placeholder_names(written) if isinstance(written, str) else []
    if any(names_secret(name) for name in names):
        return f"{written} (value not shown)"
    return f"{text} from {written}" if names else text


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
    for key, name in SECRET_VARIABLES.items():
        wanted.append((f"slurm.{key}", name, getattr(slurm, key) or ""))
    found, problems = {}, []
    for key, name, value in wanted:
        try:
            found[name] = expand(value, environ)
        except PlaceholderError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError(*problems)
    return {name: value for name, value in found.items() if value or name in slurm.env}


def written_tree(resolved: Resolved) -> dict[str, Any]:
    """Every key with its value, defaults included, in our spelling; placeholders are kept.

    A data set class of the user's own gets only the keys that were given, so there defaults stay
    out; beside an ``entry`` so does all that only the built-in recipe reads.
    """
    dumped: dict[str, Any] = resolved.config.model_dump(mode="json", by_alias=True)
    for name in ("dataset", "validation_dataset"):
        data = getattr(resolved.config, name)
        if data is not None and data.target not in (TEXT, STDLIB):
            dumped[name] = data.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if resolved.config.entry is not None:
        dumped = {name: value for name, value in dumped.items() if name not in RECIPE_SECTIONS}
        for name, fields in RECIPE_KEYS.items():
            left_out = fields | {"_target_"}
            dumped[name] = {key: item for key, item in dumped[name].items() if key not in left_out}
    return {name: _overlaid(dumped[name], resolved.document.tree.get(name)) for name in dumped}


def _overlaid(value: Any, written: Any) -> Any:
    """``value`` with the placeholders that were written in its place."""
    if isinstance(written, str) and "${" in written:
        return written
    if isinstance(value, dict) and isinstance(written, dict):
        return {key: _overlaid(item, written.get(key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        return [_overlaid(item, other) for item, other in zip(value, written, strict=True)]
    return value
