"""The documentation of keys as text for a terminal, and as the reference in docs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.keydocs import KeyDoc, every_section, key_docs
from train.config.base import TargetSection
from train.config.document import KeyPath, dotted

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
