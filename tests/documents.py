"""What documents show and name: code blocks, commands, keys, messages. Pure but for reading files.

A comment before a block says where it is executed, and is not seen in rendered Markdown:

    <!-- runs: site -->                                      in a scene of `test_docs_run.py`
    <!-- runs: local, exit code 2 -->                        and it is expected to end so
    <!-- runs: site, but drill in tests/x/test_drill.py -->  all but the commands with that word
    <!-- runs: elsewhere tests/x/test_watch.py::test_it -->  by another test, or by a step of CI
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from submitrain.config.schema import sections
from submitrain.errors import UserError
from submitrain.launcher.cli.explain import explain_key
from submitrain.launcher.cli.main import build_parser as launcher_parser
from submitrain.monitor.cli import build_parser as monitor_parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(
    r"^(?:<!-- runs: (?P<runs>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_COMMAND = re.compile(
    r"^(?:\S*python3? -m (launcher|monitor|tests[\w.]*)|submitrain(?![.\w/])|make)\b"
)
_SHELL_ENDS = re.compile(r"\s(?:\||>|>>|&&|2>)\s|;\s|\s#\s|\s{2,}#|\s->\s")
_KEY = re.compile(r"^([a-z_]+)\.[a-z_.]+$")
_FILE_ENDINGS = (".py", ".md", ".yaml", ".json", ".jsonl", ".conf", ".parquet", ".html")


@dataclass(frozen=True)
class Runs:
    """Where a block is executed."""

    scene: str | None
    """Of `tests/local/test_docs_run.py`; None where other tests run all of it."""
    elsewhere: tuple[tuple[str, str], ...] = ()
    """Words of commands that are not run there, and what runs them: ``file`` or ``file::test``."""
    exit_code: int = 0

    @classmethod
    def parse(cls, text: str) -> Runs:
        """Read a comment's text; ValueError for what is not understood."""
        if text.startswith("elsewhere "):
            return cls(None, (("", text.removeprefix("elsewhere ")),))
        scene, *clauses = re.split(r", (?:but )?", text)
        elsewhere, exit_code = [], 0
        for clause in clauses:
            words, found, target = clause.rpartition(" in ")
            if found:
                elsewhere.append((words, target))
            else:
                exit_code = int(clause.removeprefix("exit code "))
        return cls(scene, tuple(elsewhere), exit_code)

    def leaves_out(self, command: str) -> bool:
        """Whether a command of the block is run elsewhere."""
        return any(words in command for words, _ in self.elsewhere)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its fence."""

    document: Path
    line: int
    language: str
    text: str
    runs: Runs | None

    @property
    def where(self) -> str:
        """``docs/first-run.md:12``"""
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """Lines to type: after ``$``, or in blocks of commands alone; continued lines joined."""
        joined = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line[2:] for line in joined if line.startswith("$ ")]
        return [line for line in joined if _COMMAND.match(line)]

    def output(self) -> list[str]:
        """Lines that a console block shows as printed."""
        shown = self.text.splitlines() if self.language == "console" else []
        return [line for line in shown if line and not line.startswith("$ ")]

    def to_run(self) -> list[str]:
        """What a shell is given, one after the other: commands, a script or a Python program."""
        if self.language == "python":
            return [f"python -c {shlex.quote(self.text)}"]
        if self.language == "bash":
            return [f"set -e\n{self.text}"]
        return [one for one in self.commands() if not (self.runs and self.runs.leaves_out(one))]


@cache
def blocks() -> tuple[Block, ...]:
    """All fenced blocks of all documents."""
    return tuple(block for path in DOCUMENTS for block in _blocks(path))


def block_of(name: str, language: str, number: int = 0) -> Block:
    """One block of a document, by its language and its number among those."""
    return [b for b in blocks() if b.document.name == name and b.language == language][number]


def _blocks(path: Path) -> Iterator[Block]:
    text = path.read_text()
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        runs = Runs.parse(match["runs"]) if match["runs"] else None
        yield Block(path, line, match["language"], match["text"], runs)


def inline(path: Path) -> list[str]:
    """What stands between backticks in the prose of a document."""
    prose = _FENCE.sub("", path.read_text())
    return [" ".join(found.split()) for found in _INLINE.findall(prose)]


def command_problem(line: str) -> str | None:
    """Why a command line of a document cannot be right; None where nothing is wrong."""
    piped = [part for part in line.split(" | ") if _COMMAND.match(part)]
    line = _SHELL_ENDS.split(f"{piped[0] if piped else line} ")[0].strip()
    match = _COMMAND.match(line)
    if match is None:
        return None
    if line.startswith("make"):
        return _make_problem(line.split()[1:])
    package = match[1] or "launcher"
    if package.startswith("tests"):
        place = ROOT / package.replace(".", "/")
        exists = place.with_suffix(".py").exists() or (place / "__main__.py").exists()
        return None if exists else f"there is no {package}"
    parser = monitor_parser() if package == "monitor" else launcher_parser()
    return _arguments_problem(parser, line[match.end() :].strip())


def _make_problem(words: list[str]) -> str | None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    missing = [word for word in words[:1] if word not in targets]
    return f"the Makefile has no target {missing[0]}" if missing else None


def _arguments_problem(parser: argparse.ArgumentParser, text: str) -> str | None:
    [choices] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    commands: dict[str, argparse.ArgumentParser] = dict(choices.choices)
    name = (text.split() or [""])[0]
    if name in ("", "--help", "--version", "COMMAND") or set(name) <= {".", "|"}:
        return None
    if name not in commands and not re.search(r"\.ya?ml\b|^CFG|^\{", name):
        unknown = [word for word in name.split("|") if word not in commands]
        return f"no command {unknown[0]}" if unknown else None
    command = commands.get(name) or commands["run"]
    for flag in re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", text):
        if flag not in command._option_string_actions:
            return f"{name} has no option {flag}"
    for key in re.findall(r"(?<=\s)([a-z_]+(?:\.[a-z_]+)+)=", text):
        if problem := key_problem(key):
            return problem
    return _parse_problem(parser, name, commands, text)


def _parse_problem(
    parser: argparse.ArgumentParser, name: str, commands: dict[str, object], text: str
) -> str | None:
    """Parse it as the command line would, where it is no usage pattern."""
    if re.search(r"[\[|…]|\.\.\.", text):
        return None
    words = shlex.split(text)
    try:
        _, rest = parser.parse_known_args(words if name in commands else ["run", *words])
    except SystemExit:
        return f"it cannot be parsed: {text}"
    wrong = [word for word in rest if "=" not in word]
    return f"not understood: {' '.join(wrong)}" if wrong else None


def key_problem(text: str) -> str | None:
    """Why ``section.key`` is no key; None where it is one, or is something else."""
    match = _KEY.match(text)
    if match is None or match[1] not in sections() or text.endswith(_FILE_ENDINGS):
        return None
    try:
        explain_key(text)
    except UserError as error:
        is_module = (ROOT / "submitrain/train" / f"{text.replace('.', '/')}.py").exists()
        return None if is_module or "given to the component" in str(error) else str(error)
    return None


@cache
def source_texts() -> tuple[str, ...]:
    """Every string of the packages' code; a NUL stands for what is put in at run time."""
    found: list[str] = []
    for package in ("submitrain", "launcher", "monitor", "train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(
                            str(part.value) if isinstance(part, ast.Constant) else "\0"
                            for part in node.values
                        )
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return tuple(found)


def message_problem(message: str) -> str | None:
    """Why a quoted message is none of ours; ``...`` stands for what differs from case to case."""
    pieces = [piece.strip() for piece in message.split("...") if len(piece.strip()) > 3]
    pattern = re.compile(".*?".join(map(re.escape, pieces)), re.S)
    if any(pattern.search(text) for text in source_texts()):
        return None
    return f"no code says: {message}"
