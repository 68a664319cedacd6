"""Completion for bash, zsh and fish: commands, options, runs, configuration files and their keys.

The shells' scripts ask ``completion words`` at every TAB, so they never go out of date. Light: keys
come from the generated schema file, not from the types.
"""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from submitrain.errors import UserError

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


def completion(options: argparse.Namespace) -> int:
    """Print a shell's script, or what may follow the words that its script passes on."""
    if options.shell == "words":
        print("\n".join(candidates(options.words, Path.cwd())))
    elif options.words:
        raise UserError(f"completion: expected a shell only, got {' '.join(options.words)} as well")
    else:
        sys.stdout.write(SCRIPTS[options.shell])
    return 0


def candidates(words: Sequence[str], here: Path) -> list[str]:
    """What may stand for the last of ``words``, the command line up to the cursor."""
    from submitrain.launcher.cli.main import build_parser
    from submitrain.monitor.cli import build_parser as build_monitor

    module = words[2] if words[1:2] == ["-m"] and len(words) > 2 else ""
    parser = build_monitor() if module == "monitor" else build_parser()
    given = words[3:] if module else words[1:]
    current, before = (given[-1], given[:-1]) if given else ("", [])
    if current == "=" or before[-1:] == ["="]:  # bash parts a.b=c; values are the user's to know
        return []
    found = sorted(set(_offered(parser, before, current, here)))
    return [word for word in found if word.startswith(current) and word != current]


def _offered(
    parser: argparse.ArgumentParser, before: Sequence[str], current: str, here: Path
) -> Iterator[str]:
    """Commands and files in the first place; then the command's options and what it waits for."""
    commands: dict[str, argparse.ArgumentParser] = next(
        dict(one.choices) for one in parser._actions if isinstance(one, argparse._SubParsersAction)
    )
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
    with_value = {
        name: action
        for action in command._actions
        for name in action.option_strings
        if action.nargs != 0
    }
    if before[-1] in with_value:
        yield from _values(with_value[before[-1]], current, here, before)
        return
    yield from _options(command)
    rest = before[before.index(named) + 1 :] if named in commands else before
    given = sum(
        not word.startswith("-") and previous not in with_value
        for previous, word in zip(["", *rest], rest, strict=False)
    )
    waiting = [action for action in command._actions if not action.option_strings]
    if waiting and (given < len(waiting) or waiting[-1].nargs in ("*", "+")):
        yield from _values(waiting[min(given, len(waiting) - 1)], current, here, before)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if len(name) > 2]


def _values(
    action: argparse.Action, current: str, here: Path, before: Sequence[str]
) -> Iterator[str]:
    name = str(action.metavar or action.dest)
    if action.choices:
        yield from map(str, action.choices)
    elif name in ("FILE", "CFG.yaml", "CONFIG"):
        yield from _configs(current, here)
    elif name == "KEY":
        yield from _keys()
    elif "=" in name:
        wanted = "slurm." if name.startswith("slurm.") else ""
        yield from (f"{key}=" for key in _keys(sections=False) if key.startswith(wanted))
    elif "RUN" in name:
        at = [index for index, word in enumerate(before) if word == "--runs-dir"]
        folder = before[at[-1] + 1] if at and at[-1] + 1 < len(before) else "runs"
        runs = [one.parent.name for one in (here / folder).glob("*/record.json")]
        yield from [*runs, "latest"] if runs else []


def _configs(current: str, here: Path) -> Iterator[str]:
    """YAML files, and folders to go on into."""
    above = current.rpartition("/")[0] + "/" if "/" in current else ""
    for entry in (here / above).expanduser().glob("[!.]*"):
        if entry.is_dir():
            yield f"{above}{entry.name}/"
        elif entry.suffix in (".yaml", ".yml"):
            yield f"{above}{entry.name}"


def _keys(*, sections: bool = True) -> Iterator[str]:
    """Every key as ``section.key``, from the generated schema; with the sections themselves."""
    schema = json.loads((Path(__file__).parents[1] / "config.schema.json").read_text())
    for name, part in schema["properties"].items():
        refs = [option["$ref"] for option in part.get("anyOf", [part]) if "$ref" in option]
        if sections or not refs:
            yield name
        for ref in refs[:1]:
            inner = schema["$defs"][ref.rpartition("/")[2]].get("properties", {})
            yield from (f"{name}.{key}" for key in inner)
