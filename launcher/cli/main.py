"""The command line: ``python -m launcher CFG.yaml [a.b=c ...]`` and its subcommands.

Exit codes: 0 ok, 1 the run failed, 2 the user's input is wrong. Imports nothing heavy before a
command runs: ``--help`` has to answer at once.

Examples in the help of each command. Light: every start of the command line imports it.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from submitrain.command_line import Commands, add_commands, lazy, run_command

EXAMPLES_OF: dict[str, tuple[tuple[str, str], ...]] = {
    "run": (
        ("configs/quickstart.yaml", "train on this machine and watch it"),
        ("cfg.yaml slurm.nodes=4 optimizer.lr=1e-4", "change keys for this run"),
        ("cfg.yaml --cluster slurm --wait", "submit, and stay until it has ended"),
        ("cfg.yaml --detach --json", "start it and print where it is, for scripts"),
        ("cfg.yaml --dry-run", "the plan; starts nothing"),
    ),
    "plan": (
        ("plan cfg.yaml", "batch arithmetic, memory, the batch script"),
        ("plan cfg.yaml slurm.nodes=8 --cluster slurm", "of a cluster that is elsewhere"),
        ("plan cfg.yaml --json", "the same for scripts"),
    ),
    "assess": (
        ("assess", "what is here, what would go wrong, and what to do"),
        ("assess --config cfg.yaml --html assess.html", "for a configuration, as a page"),
        ("assess --nodes 4 --config cfg.yaml", "four compute nodes, by a job; docs/preflight.md"),
    ),
    "list": (
        ("list", "runs of ./runs, the newest first"),
        ("list --runs-dir /shared/runs --json", "of another folder, for scripts"),
    ),
    "status": (
        ("status latest", "state, step, loss, and where the time went"),
        ("status quickstart-2026 --json", "by the beginning of its name"),
    ),
    "logs": (
        ("logs latest -f", "follow rank 0"),
        ("logs latest --rank 3 --attempt 1 --tail 50", "the end of an earlier attempt"),
    ),
    "cancel": (("cancel latest", "it saves, stops, and stays stopped"),),
    "resume": (
        ("resume latest", "from the newest verified checkpoint"),
        ("resume latest slurm.nodes=2 slurm.time=4h", "with other resources, same global batch"),
    ),
    "drill": (
        ("drill cfg.yaml --shrink", "every fault that is possible here, on a small model"),
        ("drill cfg.yaml --faults kill,hang --steps 40", "some faults, more steps"),
        ("drill cfg.yaml --list", "what there is"),
    ),
    "sweep": (
        ("sweep cfg.yaml --nodes 1,2,4 --price 2.10", "how many nodes are worth their price"),
        ("sweep cfg.yaml --grid optimizer.lr=1e-4,3e-4 --steps 100", "try values"),
        ("sweep status latest", "how its runs are doing"),
        ("sweep report latest", "what was measured"),
    ),
    "init": (
        ("init", "writes cfg.yaml for Slurm, or for this machine"),
        ("init -o big.yaml --cluster slurm", "another file; an error where Slurm does not answer"),
        ("init -o -", "to standard output"),
    ),
    "explain": (
        ("explain slurm.time", "doc, allowed values, default, other spellings"),
        ("explain resilience", "the keys of a section"),
        ("explain", "all sections"),
    ),
    "schema": (
        ("schema > schema.json", "for editors"),
        ("schema --markdown", "the reference of all keys"),
    ),
    "completion": (
        ("completion bash >> ~/.bashrc", "for every new shell"),
        ("completion zsh > ~/.submitrain.zsh", "source it after compinit"),
        ("completion fish > ~/.config/fish/conf.d/submitrain.fish", ""),
    ),
}
"""Command to (words after `python -m launcher`, what it does)."""


_HERE = "submitrain.launcher.cli.commands"

EXAMPLES = """\
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
    if arguments[0] not in COMMANDS and arguments[0] not in ("-h", "--help", "--version"):
        if (meant := _meant(arguments[0])) is not None:
            print(
                f"error: {arguments[0]}: no command and no file; did you mean {meant}?",
                file=sys.stderr,
            )
            return 2
        arguments.insert(0, "run")
    return run_command(_parse(parser, arguments))


def _meant(word: str) -> str | None:
    """The command that a bare word resembles which names no file."""
    if not word.isalpha() or Path(word).exists():
        return None
    close = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.7)
    return close[0] if close else None


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
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    add_commands(parser, "launcher", COMMANDS, EXAMPLES_OF)
    return parser


class _Version(argparse.Action):
    """Prints the installed version; looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(version("submitrain"))
        except PackageNotFoundError:
            print("not installed (running from a checkout)")
        parser.exit()


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CFG.yaml", help="configuration file")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="values that replace its own")
    parser.add_argument(
        "--cluster",
        choices=["auto", "local", "slurm"],
        help="where to run; default: what the configuration says (auto)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _after_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--after", metavar="RUN", help="start when that run has finished")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = _RUN_USAGE
    _config_arguments(parser)
    _after_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    follow = parser.add_mutually_exclusive_group()
    follow.add_argument("--wait", action="store_true", help="stay until the run has ended")
    follow.add_argument("--detach", action="store_true", help="return as soon as it is started")
    parser.add_argument(
        "--force", action="store_true", help="submit what Slurm would never start, too"
    )
    parser.add_argument(
        "--max-wait", metavar="TIME", help="refuse when the queue is longer (30m, 2h, 1-0)"
    )
    parser.set_defaults(handler=lazy(_HERE, "run"))


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument(
        "--keys",
        action="store_true",
        help="say of every key whether it is used, another name for ours, neutral or refused",
    )
    parser.add_argument(
        "--env", action="store_true", help="list the ranks' variables, and who sets each of them"
    )
    _after_argument(parser)
    parser.set_defaults(handler=lazy(_HERE, "plan"))


def _runs_dir_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )


def _one_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder, name, beginning of a name, or latest")
    _runs_dir_argument(parser)


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    _runs_dir_argument(parser)
    parser.add_argument("--json", action="store_true", help="a JSON list on standard output")
    parser.set_defaults(handler=lazy(_HERE, "list_all"))


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    _one_run(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(handler=lazy(_HERE, "status"))


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    _one_run(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--attempt", type=int, metavar="N", help="default: the newest")
    parser.add_argument("--tail", type=int, metavar="N", help="only the last N lines")
    parser.set_defaults(handler=lazy(_HERE, "logs"))


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    _one_run(parser)
    parser.set_defaults(handler=lazy(_HERE, "cancel"))


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    _one_run(parser)
    parser.add_argument(
        "overrides", metavar="slurm.KEY=VALUE", nargs="*", help="other resources (slurm.nodes=4)"
    )
    parser.add_argument(
        "--force", action="store_true", help="submit what Slurm would never start, too"
    )
    follow = parser.add_mutually_exclusive_group()
    follow.add_argument("--wait", action="store_true", help="stay until the run has ended")
    follow.add_argument("--detach", action="store_true", help="return as soon as it is started")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(handler=lazy(_HERE, "resume"))


def _drill_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument(
        "--steps", type=int, default=20, metavar="N", help="steps of each run (default: 20)"
    )
    parser.add_argument(
        "--shrink", action="store_true", help="two layers, width 256 (with an inline model.config)"
    )
    parser.add_argument(
        "--faults", metavar="A,B|all", help="which faults (default: all that runs should survive)"
    )
    parser.add_argument("--list", action="store_true", help="say what faults there are, and stop")
    parser.set_defaults(handler=lazy("submitrain.launcher.drill.cli"))


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "python -m launcher sweep CFG.yaml [a.b=c ...] (--nodes 1,2,4 | --grid a.b=x,y) [options]\n"
        "       python -m launcher sweep status|report|cancel|resume SWEEP"
    )
    _config_arguments(parser)
    parser.add_argument("--nodes", metavar="N,N,...", help="node counts to compare")
    parser.add_argument(
        "--mode",
        choices=["strong", "weak"],
        help="strong (default): the global batch is fixed; weak: that of each rank",
    )
    parser.add_argument(
        "--grid", nargs="+", action="extend", metavar="a.b=x,y", help="values to try, each with all"
    )
    parser.add_argument(
        "--repeats", type=int, metavar="R", help="runs of each (default: 3 with --nodes, else 1)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="timed steps (default: 50); without --nodes: the length of each run",
    )
    parser.add_argument(
        "--warmup", type=int, metavar="N", help="steps that are not timed (default: 20)"
    )
    parser.add_argument(
        "--tokens", type=float, metavar="N", help="length of the training whose time is to be told"
    )
    parser.add_argument("--price", metavar="P", help="of a GPU (or rank) and hour: 2.10, 2.10EUR")
    parser.add_argument("--at-once", type=int, metavar="K", help="jobs on Slurm (default: 4)")
    parser.add_argument("--html", metavar="FILE", help="write the report there as well")
    follow = parser.add_mutually_exclusive_group()
    follow.add_argument("--wait", action="store_true", help="stay until it has ended")
    follow.add_argument("--detach", action="store_true", help="return as soon as it is started")
    _runs_dir_argument(parser)
    parser.set_defaults(handler=lazy("submitrain.launcher.sweeps.cli"))


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        default="cfg.yaml",
        metavar="FILE",
        help="where to write it (default: cfg.yaml); - is standard output",
    )
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    parser.add_argument(
        "--cluster",
        choices=["auto", "local", "slurm"],
        default="auto",
        help="what to write for; auto (default) = Slurm where it answers",
    )
    parser.set_defaults(handler=lazy("submitrain.launcher.cli.init", "init"))


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key", metavar="KEY", nargs="?", help="slurm.time, a section, or a key's bare name"
    )
    parser.add_argument("--json", action="store_true", help="a JSON list on standard output")
    parser.set_defaults(handler=lazy("submitrain.launcher.cli.explain", "explain"))


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        choices=["bash", "zsh", "fish", "words"],
        help="whose script to print; its script asks with `words` at every TAB",
    )
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="after `words --`: the line so far"
    )
    parser.set_defaults(handler=lazy("submitrain.launcher.cli.init", "completion"))


def _assess_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog}\n\n" + (
        "Exit codes: 0 nothing fails (warnings and unknowns are no failures), 1 something fails, "
        "2 the input is wrong."
    )
    parser.add_argument("--config", metavar="CFG.yaml", help="assess for this configuration")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--html", metavar="FILE", help="write a page there as well")
    parser.add_argument(
        "--nodes", type=int, metavar="N", help="check N compute nodes, by a job of its own"
    )
    parser.add_argument(
        "--quick", action="store_true", help="with --nodes: light tasks only, no ranks"
    )
    parser.set_defaults(handler=lazy("submitrain.launcher.checks.assess"))


def _schema_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--markdown", action="store_true", help="docs/configuration.md instead: all keys as tables"
    )
    parser.set_defaults(handler=lazy(_HERE, "schema"))


COMMANDS: Commands = {
    "run": ("start a run; the word `run` may be left out", _run_arguments),
    "assess": ("what is here and what is wrong with it, in under 10 s", _assess_arguments),
    "plan": ("show what a launch would ask for, and start nothing", _plan_arguments),
    "list": ("all runs and how they are doing", _list_arguments),
    "status": ("how one run is doing", _status_arguments),
    "logs": ("output of a rank", _logs_arguments),
    "cancel": ("save, stop, and stay stopped", _cancel_arguments),
    "resume": ("go on from the newest verified checkpoint", _resume_arguments),
    "drill": ("inject faults into a short run, and compare the curves", _drill_arguments),
    "sweep": ("measure node counts, or try values; judge them together", _sweep_arguments),
    "init": ("write a first configuration for the cluster that is here", _init_arguments),
    "explain": ("what a key of the configuration means", _explain_arguments),
    "schema": ("JSON Schema of configuration files, for editors", _schema_arguments),
    "completion": ("completion for bash, zsh or fish", _completion_arguments),
}
