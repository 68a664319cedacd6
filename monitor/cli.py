"""The command line of the monitor: ``python -m monitor COMMAND``.

Exit codes: 0 ok, 2 the user's input is wrong. Every start imports this module, so it imports
nothing heavy: the handler of a command is loaded when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from submitrain.command_line import Commands, add_commands, lazy, run_command

Parser = argparse.ArgumentParser
PORT = 9847
MAX_RUNS = 200


EXAMPLES_OF: dict[str, tuple[tuple[str, str], ...]] = {
    "watch": (
        ("watch latest", "one run, until it has ended"),
        ("watch --all --config alerts.yaml", "every run of ./runs, for ever"),
        ("watch --all --once --json", "one poll, for cron and scripts"),
    ),
    "test-alert": (
        ("test-alert latest", "the channels of a run's own configuration"),
        ("test-alert --config alerts.yaml", "those of a file for all runs"),
    ),
    "status": (
        ("status latest", "everything about one run"),
        ("status --all --json", "all runs, for scripts"),
    ),
    "top": (
        ("top", "all runs of ./runs, live; Enter shows the logs of one, q quits"),
        ("top --interval 30", "fewer polls"),
    ),
    "serve": (
        ("serve --port 9847", "metrics of all runs for Prometheus"),
        ("serve latest --bind 0.0.0.0", "of one run, on every address"),
    ),
    "diagnose": (
        ("diagnose latest", "why a run of ours ended"),
        ("diagnose latest --attempt 2", "an earlier attempt"),
        ("diagnose slurm-4711.out slurm-4711.err", "any trainer's logs"),
    ),
    "report": (
        ("report latest", "reports/report.html, and a summary"),
        ("report latest --html /tmp/run.html --json", "elsewhere, and all numbers"),
    ),
    "cost": (
        ("cost latest", "hours and waste of one run"),
        ("cost --all --by user --prices prices.yaml", "a bill"),
        ("cost --all --by month --since 2026-01-01 --format csv", "for a spreadsheet"),
    ),
    "audit": (
        ("audit show latest", "who did what"),
        ("audit verify --all", "was any record changed"),
        ("audit export latest", "the trail, for elsewhere"),
    ),
}
"""Command to (words after `python -m monitor`, what it does)."""


EXAMPLES = """\
examples:
  python -m monitor status latest                            one run, now
  python -m monitor top                                      all runs, live
  python -m monitor serve --port 9847                        metrics for Prometheus
  python -m monitor watch latest                             alerts of one run, until it has ended
  python -m monitor watch --all --config alerts.yaml         all runs, for ever
  python -m monitor diagnose runs/quickstart-20260101-1a2b   why a run of ours ended
  python -m monitor diagnose slurm-4711.out slurm-4711.err   any trainer's logs, one diagnosis
  python -m monitor report latest                            reports/report.html, and a summary
  python -m monitor cost --all --by user --prices prices.yaml   who used what, and what it cost
  python -m monitor audit verify latest                      was the record of who did what changed
  journalctl -k | python -m monitor diagnose -               standard input
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        parser.print_help()
        return 2
    return run_command(parser.parse_args(arguments))


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m monitor",
        description="See how runs go and why they ended.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_commands(parser, "monitor", COMMANDS, EXAMPLES_OF)
    return parser


def _run_or_all(parser: Parser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("run", metavar="RUN", nargs="?", help="a run folder, its name, or latest")
    which.add_argument("--all", action="store_true", help="every run of the runs folder")


def _runs(parser: Parser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders, names, or latest")
    parser.add_argument("--all", action="store_true", help="every run of the runs folder")


def _runs_dir(parser: Parser) -> None:
    text = "folder of run folders (default: runs)"
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help=text)


def _interval(parser: Parser, default_s: float) -> None:
    text = f"seconds between polls of runs and scheduler (default {default_s:g})"
    parser.add_argument("--interval", type=float, default=default_s, metavar="S", help=text)


def _alerts_dir(parser: Parser) -> None:
    text = "where `watch --state-dir` keeps alerts, if it does"
    parser.add_argument("--state-dir", metavar="DIR", help=text)


def _alerts_config(parser: Parser) -> None:
    text = "YAML with alerts and monitor sections for all runs, instead of each run's own"
    parser.add_argument("--config", metavar="FILE", help=text)


def _status_arguments(parser: Parser) -> None:
    _run_or_all(parser)
    _runs_dir(parser)
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(handler=lazy("submitrain.monitor.status"))


def _top_arguments(parser: Parser) -> None:
    _runs_dir(parser)
    _interval(parser, 10.0)
    _alerts_dir(parser)
    parser.set_defaults(handler=lazy("submitrain.monitor.top.app"))


def _serve_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", nargs="?", help="one run only (default: --all)")
    add("--all", action="store_true", help="every run of the runs folder")
    _runs_dir(parser)
    add("--port", type=int, default=PORT, metavar="P", help=f"default {PORT}; 0: any free one")
    address = "address to listen on (default 127.0.0.1; 0.0.0.0 for a Prometheus elsewhere)"
    add("--bind", default="127.0.0.1", metavar="A", help=address)
    _interval(parser, 15.0)
    keep = "how long a run is shown after its end (default 6h)"
    add("--keep-ended", default="6h", metavar="TIME", help=keep)
    most = f"at most so many runs, living and newest first (default {MAX_RUNS})"
    add("--max-runs", type=int, default=MAX_RUNS, metavar="N", help=most)
    _alerts_dir(parser)
    parser.set_defaults(handler=lazy("submitrain.monitor.serve.cli"))


def _watch_arguments(parser: Parser) -> None:
    _run_or_all(parser)
    _runs_dir(parser)
    interval = "seconds between polls (default: monitor.interval_s)"
    parser.add_argument("--interval", type=float, metavar="S", help=interval)
    parser.add_argument("--once", action="store_true", help="poll once, send, and exit")
    parser.add_argument("--json", action="store_true", help="one JSON object per run and poll")
    _alerts_config(parser)
    state = "where to keep alerts; default: in each run folder"
    parser.add_argument("--state-dir", metavar="DIR", help=state)
    parser.set_defaults(handler=lazy("submitrain.monitor.watch.watch"))


def _test_alert_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run whose channels are tried")
    _runs_dir(parser)
    _alerts_config(parser)
    parser.set_defaults(handler=lazy("submitrain.monitor.alerts.delivery"))


def _diagnose_arguments(parser: Parser) -> None:
    what = "log files of one job, or a run folder (or its name, or latest); - is standard input"
    parser.add_argument("targets", metavar="FILE|RUN", nargs="+", help=what)
    parser.add_argument("--attempt", type=int, metavar="N", help="of a run; default: the newest")
    _runs_dir(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(handler=lazy("submitrain.monitor.diagnose.cli"))


def _report_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, its name, or latest")
    where = "where to write it (default: RUN/reports/report.html)"
    parser.add_argument("--html", metavar="FILE", help=where)
    _runs_dir(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(handler=lazy("submitrain.monitor.report.cli"))


def _cost_arguments(parser: Parser) -> None:
    _runs(parser)
    _runs_dir(parser)
    parser.add_argument(
        "--by",
        choices=("run", "user", "account", "project", "partition", "month"),
        default="run",
        help="what to group by (default: run); months are UTC",
    )
    parser.add_argument("--prices", metavar="FILE", help="price table, see docs/cost-and-audit.md")
    parser.add_argument("--since", metavar="DAY", help="from this UTC day on, as in 2026-01-31")
    parser.add_argument("--until", metavar="DAY", help="up to this UTC day, without it")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.set_defaults(handler=lazy("submitrain.monitor.accounting.cli"))


def _audit_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=("show", "verify", "export"))
    _runs(parser)
    _runs_dir(parser)
    parser.add_argument("--format", choices=("table", "csv", "json"), help="default: table")
    parser.add_argument("--output", metavar="FILE", help="of export; default: standard output")
    head = "of verify: what an earlier verify of one run printed"
    parser.add_argument("--head", metavar="HASH", help=head)
    parser.set_defaults(handler=lazy("submitrain.monitor.audit.cli"))


COMMANDS: Commands = {
    "status": ("how one run is doing, or all", _status_arguments),
    "top": ("all runs live on a terminal, with the logs of a chosen one", _top_arguments),
    "serve": ("all runs as metrics for Prometheus", _serve_arguments),
    "watch": ("watch runs and send alerts", _watch_arguments),
    "test-alert": ("send a test message to every channel that is set up", _test_alert_arguments),
    "diagnose": ("the cause of a failure, from logs or a run folder", _diagnose_arguments),
    "report": ("one HTML file about a run, and a summary", _report_arguments),
    "cost": ("GPU hours, money and where they went, of any runs", _cost_arguments),
    "audit": ("who did what to a run, and whether anyone changed the record", _audit_arguments),
}
