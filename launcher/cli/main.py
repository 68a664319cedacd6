"""The command line: ``python -m launcher CFG.yaml [a.b=c ...]`` and its subcommands.

Every command is one entry of ``_COMMANDS``: what it does, its handler, options and examples. Exit
codes: 0 ok, 1 the run failed, 2 the user's input is wrong. Imports nothing heavy before a command
runs: ``--help`` has to answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.command_line import Commands, Handler, add_commands, lazy, run_command

Option = tuple[tuple[str, ...], dict[str, Any]]
"""Arguments of ``ArgumentParser.add_argument``."""


def _option(*names: str, **settings: Any) -> Option:
    return names, settings


def _value(name: str, metavar: str, text: str, **settings: Any) -> Option:
    return _option(name, metavar=metavar, help=text, **settings)


def _switch(name: str, text: str) -> Option:
    return _option(name, action="store_true", help=text)


@dataclass(frozen=True)
class Command:
    """One command; a list among its options holds options of which at most one may be given."""

    summary: str
    handler: Handler
    options: tuple[Option | list[Option], ...]
    examples: tuple[tuple[str, str], ...]
    """Words after ``python -m launcher``, and what they do."""
    usage: str | None = None
    after_examples: str = ""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Give the command's parser what this one has."""
        parser.usage = self.usage
        parser.epilog = f"{parser.epilog}{self.after_examples}"
        for one in self.options:
            group = parser.add_mutually_exclusive_group() if isinstance(one, list) else parser
            for names, settings in one if isinstance(one, list) else [one]:
                group.add_argument(*names, **settings)
        parser.set_defaults(handler=self.handler)


_EXAMPLES = """\
examples:
  python -m launcher init -o cfg.yaml                           a first configuration for this place
  python -m launcher configs/quickstart.yaml                    train here, watch it
  python -m launcher cfg.yaml optimizer.lr=1e-4 --cluster slurm submit to Slurm
  python -m launcher cfg.yaml --dry-run                         show the plan, start nothing
  python -m launcher assess --config cfg.yaml                   can this cluster run it
  python -m launcher list                                       all runs and how they are doing
  python -m launcher status latest                              one run
  python -m launcher logs latest -f --rank 1                    follow a rank's output
  python -m launcher resume latest                              go on from the last checkpoint
  python -m launcher drill cfg.yaml                             prove that it survives here
  python -m launcher sweep cfg.yaml --nodes 1,2,4               how many nodes are worth it

A RUN is a run folder, its name, the unique beginning of its name, or `latest`.
Exit codes: 0 ok, 1 the run failed or was cancelled, 2 the input is wrong.
"""
_RUN_USAGE = "python -m launcher CFG.yaml [a.b=c ...] [options]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return 2
    first = arguments[0]
    if first == "--version":
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(version("submitrain"))
        except PackageNotFoundError:
            print("not installed (running from a checkout)")
        return 0
    if first not in COMMANDS and first not in ("-h", "--help"):
        meant = difflib.get_close_matches(first, COMMANDS, n=1, cutoff=0.7)
        if meant and first.isalpha() and not Path(first).exists():
            print(
                f"error: {first}: no command and no file; did you mean {meant[0]}?", file=sys.stderr
            )
            return 2
        arguments.insert(0, "run")
    return run_command(_parse(parser, arguments))


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; overrides may stand anywhere, which argparse alone does not allow beside options."""
    options, rest = parser.parse_known_args(arguments)
    if rest and hasattr(options, "overrides") and not any(word.startswith("-") for word in rest):
        options.overrides = [*options.overrides, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher",
        usage=f"{_RUN_USAGE}\n       python -m launcher COMMAND ... [--help]",
        description="Train a causal LM over many nodes, and see it through to its end.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    add_commands(parser, "launcher", COMMANDS, EXAMPLES_OF)
    return parser


def _handler(name: str) -> Handler:
    return lazy("submitrain.launcher.cli.commands", name)


_JSON = _switch("--json", "one JSON object on standard output")
_JSON_LIST = _switch("--json", "a JSON list on standard output")
_HTML = _value("--html", "FILE", "write a page there as well")
_CONFIG = (
    _value("config", "CFG.yaml", "configuration file"),
    _value("overrides", "a.b=c", "values that replace its own", nargs="*"),
    _option(
        "--cluster",
        choices=["auto", "local", "slurm"],
        help="where to run; default: what the configuration says (auto)",
    ),
    _JSON,
)
_AFTER = _value("--after", "RUN", "start when that run has finished")
_RUNS_DIR = _value("--runs-dir", "DIR", "folder of run folders (default: runs)", default="runs")
_RUN = (_value("run", "RUN", "folder, name, beginning of a name, or latest"), _RUNS_DIR)
_FOLLOW = [
    _switch("--wait", "stay until it has ended"),
    _switch("--detach", "return as soon as it is started"),
]
_FORCE = _switch("--force", "submit even if the job cannot be scheduled")

_COMMANDS = {
    "run": Command(
        "start a run; the word `run` may be left out",
        _handler("run"),
        (
            *_CONFIG,
            _AFTER,
            _switch("--dry-run", "show the plan and start nothing"),
            _FOLLOW,
            _FORCE,
            _value("--max-wait", "TIME", "refuse when the queue is longer (30m, 2h, 1-0)"),
        ),
        (
            ("configs/quickstart.yaml", "train on this machine and watch it"),
            ("cfg.yaml slurm.nodes=4 optimizer.lr=1e-4", "change keys for this run"),
            ("cfg.yaml --cluster slurm --wait", "submit, and stay until it has ended"),
            ("cfg.yaml --detach --json", "start it and print where it is, for scripts"),
            ("cfg.yaml --dry-run", "the plan; starts nothing"),
        ),
        usage=_RUN_USAGE,
    ),
    "assess": Command(
        "what is here and what is wrong with it, in under 10 s",
        lazy("submitrain.launcher.checks.assess"),
        (
            _value("--config", "CFG.yaml", "assess for this configuration"),
            _JSON,
            _HTML,
            _value("--nodes", "N", "check N compute nodes, by a job of its own", type=int),
            _switch("--quick", "with --nodes: light tasks only, no ranks"),
        ),
        (
            ("assess", "what is here, what would go wrong, and what to do"),
            ("assess --config cfg.yaml --html assess.html", "for a configuration, as a page"),
            ("assess --nodes 4 --config cfg.yaml", "four compute nodes; docs/preflight.md"),
        ),
        after_examples="\n\nExit codes: 0 nothing fails (warnings and unknowns are no failures), "
        "1 something fails, 2 the input is wrong.",
    ),
    "plan": Command(
        "show what a launch would ask for, and start nothing",
        _handler("plan"),
        (
            *_CONFIG,
            _switch(
                "--keys",
                "say of every key whether it is used, another name for ours, neutral or refused",
            ),
            _switch("--env", "list the ranks' variables, and who sets each of them"),
            _AFTER,
        ),
        (
            ("plan cfg.yaml", "batch arithmetic, memory, the batch script"),
            ("plan cfg.yaml slurm.nodes=8 --cluster slurm", "of a cluster that is elsewhere"),
            ("plan cfg.yaml --json", "the same for scripts"),
        ),
    ),
    "list": Command(
        "all runs and how they are doing",
        _handler("list_all"),
        (_RUNS_DIR, _JSON_LIST),
        (
            ("list", "runs of ./runs, the newest first"),
            ("list --runs-dir /shared/runs --json", "of another folder, for scripts"),
        ),
    ),
    "status": Command(
        "how one run is doing",
        _handler("status"),
        (*_RUN, _JSON),
        (
            ("status latest", "state, step, loss, and where the time went"),
            ("status quickstart-2026 --json", "by the beginning of its name"),
        ),
    ),
    "logs": Command(
        "output of a rank",
        _handler("logs"),
        (
            *_RUN,
            _option("-f", "--follow", action="store_true", help="go on until the run has ended"),
            _value("--rank", "N", "default: 0", type=int, default=0),
            _value("--attempt", "N", "default: the newest", type=int),
            _value("--tail", "N", "only the last N lines", type=int),
        ),
        (
            ("logs latest -f", "follow rank 0"),
            ("logs latest --rank 3 --attempt 1 --tail 50", "the end of an earlier attempt"),
        ),
    ),
    "cancel": Command(
        "save, stop, and stay stopped",
        _handler("cancel"),
        _RUN,
        (("cancel latest", "it saves, stops, and stays stopped"),),
    ),
    "resume": Command(
        "go on from the newest verified checkpoint",
        _handler("resume"),
        (
            *_RUN,
            _value("overrides", "slurm.KEY=VALUE", "other resources (slurm.nodes=4)", nargs="*"),
            _FORCE,
            _FOLLOW,
            _JSON,
        ),
        (
            ("resume latest", "from the newest verified checkpoint"),
            ("resume latest slurm.nodes=2 slurm.time=4h", "other resources, same global batch"),
        ),
    ),
    "drill": Command(
        "inject faults into a short run, and compare the curves",
        lazy("submitrain.launcher.drill.cli"),
        (
            *_CONFIG,
            _value("--steps", "N", "steps of each run (default: 20)", type=int, default=20),
            _switch("--shrink", "two layers, width 256 (with an inline model.config)"),
            _value("--faults", "A,B|all", "which faults (default: all that runs should survive)"),
            _switch("--list", "say what faults there are, and stop"),
        ),
        (
            ("drill cfg.yaml --shrink", "every fault that is possible here, on a small model"),
            ("drill cfg.yaml --faults kill,hang --steps 40", "some faults, more steps"),
            ("drill cfg.yaml --list", "what there is"),
        ),
    ),
    "sweep": Command(
        "measure node counts, or try values; judge them together",
        lazy("submitrain.launcher.sweeps.cli"),
        (
            *_CONFIG,
            _value("--nodes", "N,N,...", "node counts to compare"),
            _option(
                "--mode",
                choices=["strong", "weak"],
                help="strong (default): the global batch is fixed; weak: that of each rank",
            ),
            _value("--grid", "a.b=x,y", "values to try, each with all", nargs="+", action="extend"),
            _value("--repeats", "R", "runs of each (default: 3 with --nodes, else 1)", type=int),
            _value(
                "--steps",
                "N",
                "timed steps (default: 50); without --nodes: the length of each run",
                type=int,
            ),
            _value("--warmup", "N", "steps that are not timed (default: 20)", type=int),
            _value("--tokens", "N", "tokens of the training whose time is estimated", type=float),
            _value("--price", "P", "of a GPU (or rank) and hour: 2.10, 2.10EUR"),
            _value("--at-once", "K", "jobs on Slurm (default: 4)", type=int),
            _HTML,
            _FOLLOW,
            _RUNS_DIR,
        ),
        (
            ("sweep cfg.yaml --nodes 1,2,4 --price 2.10", "how many nodes are worth their price"),
            ("sweep cfg.yaml --grid optimizer.lr=1e-4,3e-4 --steps 100", "try values"),
            ("sweep status latest", "how its runs are doing"),
            ("sweep report latest", "what was measured"),
        ),
        usage="python -m launcher sweep CFG.yaml [a.b=c ...] (--nodes 1,2,4 | --grid a.b=x,y) "
        "[options]\n       python -m launcher sweep status|report|cancel|resume SWEEP",
    ),
    "init": Command(
        "write a first configuration for the cluster that is here",
        lazy("submitrain.launcher.cli.init", "init"),
        (
            _option(
                "-o",
                "--output",
                default="cfg.yaml",
                metavar="FILE",
                help="where to write it (default: cfg.yaml); - is standard output",
            ),
            _switch("--force", "overwrite a file that is there"),
            _option(
                "--cluster",
                choices=["auto", "local", "slurm"],
                default="auto",
                help="what to write for; auto (default) = Slurm where it answers",
            ),
        ),
        (
            ("init", "writes cfg.yaml for Slurm, or for this machine"),
            ("init -o big.yaml --cluster slurm", "another file; fails where no Slurm answers"),
            ("init -o -", "to standard output"),
        ),
    ),
    "explain": Command(
        "what a key of the configuration means",
        lazy("submitrain.launcher.cli.explain", "explain"),
        (
            _value("key", "KEY", "slurm.time, a section, or a key's bare name", nargs="?"),
            _JSON_LIST,
        ),
        (
            ("explain slurm.time", "doc, allowed values, default, other spellings"),
            ("explain resilience", "the keys of a section"),
            ("explain", "all sections"),
        ),
    ),
    "schema": Command(
        "JSON Schema of configuration files, for editors",
        _handler("schema"),
        (_switch("--markdown", "docs/configuration.md instead: all keys as tables"),),
        (
            ("schema > schema.json", "for editors"),
            ("schema --markdown", "the reference of all keys"),
        ),
    ),
    "completion": Command(
        "completion for bash, zsh or fish",
        lazy("submitrain.launcher.cli.completion", "completion"),
        (
            _option(
                "shell",
                choices=["bash", "zsh", "fish", "words"],
                help="whose script to print; its script asks with `words` at every TAB",
            ),
            _value("words", "WORD", "after `words --`: the line so far", nargs="*"),
        ),
        (
            ("completion bash >> ~/.bashrc", "for every new shell"),
            ("completion zsh > ~/.submitrain.zsh", "source it after compinit"),
            ("completion fish > ~/.config/fish/conf.d/submitrain.fish", ""),
        ),
    ),
}
COMMANDS: Commands = {name: (one.summary, one.configure) for name, one in _COMMANDS.items()}
EXAMPLES_OF = {name: one.examples for name, one in _COMMANDS.items()}
