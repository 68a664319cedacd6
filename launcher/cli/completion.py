"""Completion for bash, zsh and fish: commands, options, runs, configuration files and their keys.

The shells' scripts ask ``completion words`` at every TAB, so they never go out of date. Light: keys
come from the generated schema file, not from the types.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_BASH = """\
# submitrain: eval "$(python -m launcher completion bash)", or this line in ~/.bashrc
_submitrain() {
    local ask
    if [[ ${COMP_WORDS[0]} == *submitrain ]]; then
        ask=("${COMP_WORDS[0]}")
    elif [[ ${COMP_WORDS[1]} == -m && ${COMP_WORDS[2]} =~ ^(launcher|monitor)$ ]]; then
        ask=("${COMP_WORDS[0]}" -m launcher)
    else
        COMPREPLY=()
        return
    fi
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        [[ -n $line ]] && COMPREPLY+=("$line")
    done < <("${ask[@]}" completion words -- "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o bashdefault -o default -F _submitrain python python3 submitrain
"""
_ZSH = """\
# submitrain: eval "$(python -m launcher completion zsh)", after compinit
_submitrain() {
    local -a ask found
    if [[ $words[1] == *submitrain ]]; then
        ask=($words[1])
    elif [[ $words[2] == -m && $words[3] == (launcher|monitor) ]]; then
        ask=($words[1] -m launcher)
    else
        (( $+functions[_python] )) && _python "$@" || _files
        return
    fi
    found=("${(@f)$("${ask[@]}" completion words -- "${(@)words[1,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( $#found )); then
        compadd -S '' -- ${(M)found:#*[=/]}
        compadd -- ${found:#*[=/]}
    else
        _files
    fi
}
compdef _submitrain python python3 submitrain
"""
_FISH = """\
# submitrain: python -m launcher completion fish | source
function __submitrain_words
    set -l words (commandline -opc) (commandline -ct)
    if string match -qr 'submitrain$' -- $words[1]
        $words[1] completion words -- $words 2>/dev/null
    else
        $words[1] -m launcher completion words -- $words 2>/dev/null
    end
end
function __submitrain_is_ours
    set -l words (commandline -opc)
    string match -qr 'submitrain$' -- $words[1]; and return 0
    test (count $words) -ge 3; and test "$words[2]" = -m
    and contains -- "$words[3]" launcher monitor
end
for command in python python3 submitrain
    complete -c $command -n __submitrain_is_ours -f -a '(__submitrain_words)'
end
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

_SUFFIXES = (".yaml", ".yml")
_FILE_VALUES = frozenset({"FILE", "CFG.yaml", "CONFIG"})


def candidates(words: Sequence[str], here: Path) -> list[str]:
    """What may stand for the last of ``words``, the command line up to the cursor."""
    parser, given = _parser(words)
    current, before = (given[-1], given[:-1]) if given else ("", [])
    if current == "=" or before[-1:] == ["="]:  # bash parts a.b=c; values are the user's to know
        return []
    found = sorted(set(_offered(parser, before, current, here)))
    return [word for word in found if word.startswith(current) and word != current]


def _parser(words: Sequence[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The command line's parser, and its own words, the one at the cursor included."""
    from submitrain.launcher.cli.main import build_parser
    from submitrain.monitor.cli import build_parser as build_monitor

    if words[1:2] == ["-m"] and len(words) > 2:
        return (build_monitor() if words[2] == "monitor" else build_parser()), list(words[3:])
    return build_parser(), list(words[1:])


def _offered(
    parser: argparse.ArgumentParser, before: list[str], current: str, here: Path
) -> Iterator[str]:
    commands = _commands(parser)
    named = next((word for word in before if not word.startswith("-")), None)
    if named is None:
        yield from commands
        yield from _options(parser)
        if "run" in commands:
            yield from _configs(current, here)
        return
    command = commands.get(named) or commands.get("run")
    if command is None:
        return
    expects = _expected_value(command, before[-1])
    if expects is not None:
        yield from _values(expects, current, here)
        return
    yield from _options(command)
    rest = before[before.index(named) + 1 :] if named in commands else before
    yield from _positionals(command, rest, current, here)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if len(name) > 2]


def _expected_value(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    """The option that waits for its value at the cursor."""
    for action in parser._actions:
        if word in action.option_strings and action.nargs != 0:
            return action
    return None


def _positionals(
    command: argparse.ArgumentParser, before: list[str], current: str, here: Path
) -> Iterator[str]:
    waiting = [action for action in command._actions if not action.option_strings]
    values = {
        index + 1
        for index, word in enumerate(before)
        if (_expected_value(command, word)) is not None
    }
    given = sum(
        not word.startswith("-") for index, word in enumerate(before) if index not in values
    )
    if not waiting:
        return
    many = waiting[-1].nargs in ("*", "+", argparse.REMAINDER)
    if given < len(waiting) or many:
        yield from _values(waiting[min(given, len(waiting) - 1)], current, here, before)


def _values(
    action: argparse.Action, current: str, here: Path, before: Sequence[str] = ()
) -> Iterator[str]:
    if action.choices:
        yield from map(str, action.choices)
        return
    name = str(action.metavar or action.dest)
    if name in _FILE_VALUES:
        yield from _configs(current, here)
    elif name == "KEY":
        yield from _keys("")
    elif "=" in name or name == "a.b=c":
        yield from _keys("=", only="slurm" if name.startswith("slurm.") else None)
    elif "RUN" in name:
        yield from _runs(here / _runs_dir(before))


def _runs_dir(before: Sequence[str]) -> str:
    at = [index for index, word in enumerate(before) if word == "--runs-dir"]
    return before[at[-1] + 1] if at and at[-1] + 1 < len(before) else "runs"


def _runs(folder: Path) -> list[str]:
    try:
        found = [one.name for one in folder.iterdir() if (one / "record.json").is_file()]
    except OSError:
        return []
    return [*found, "latest"] if found else []


def _configs(current: str, here: Path) -> Iterator[str]:
    """YAML files, and folders to go on into."""
    above = current.rpartition("/")[0] + "/" if "/" in current else ""
    folder = (here / above).expanduser()
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield f"{above}{entry.name}/"
        elif entry.suffix in _SUFFIXES:
            yield f"{above}{entry.name}"


def _keys(ending: str, only: str | None = None) -> Iterator[str]:
    """Every key as ``section.key``, from the generated schema."""
    schema = json.loads((Path(__file__).parents[1] / "config.schema.json").read_text())
    for name, part in schema["properties"].items():
        inner = _section(part, schema)
        if inner is None:
            if only is None:
                yield f"{name}{ending}"
        elif only in (None, name):
            yield from (f"{name}.{key}{ending}" for key in inner)
            if not ending:
                yield name


def _section(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    for option in part.get("anyOf", [part]):
        if "$ref" in option:
            found = schema["$defs"][option["$ref"].rpartition("/")[2]]
            return dict(found.get("properties", {}))
    return None
