"""The command line of the monitor: ``python -m monitor COMMAND``.

Exit codes: 0 ok, 2 the user's input is wrong. Imports nothing heavy before a command runs.

Options of ``python -m monitor cost``. Light: every start of the command line imports it.

Options of ``python -m monitor audit``. Light: every start of the command line imports it.

Options of ``python -m monitor serve``.

Options of ``python -m monitor top``.

Examples in the help of each command. Light: every start of the command line imports it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from submitrain.command_line import Commands, add_commands, carry_out, lazy


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders, names, or latest")
    parser.add_argument("--all", action="store_true", help="every run of the runs folder")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
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


def add_audit_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", choices=("show", "verify", "export"))
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders, names, or latest")
    parser.add_argument("--all", action="store_true", help="every run of the runs folder")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    parser.add_argument("--format", choices=("table", "csv", "json"), help="default: table")
    parser.add_argument("--output", metavar="FILE", help="of export; default: standard output")
    parser.add_argument(
        "--head", metavar="HASH", help="of verify: what an earlier verify of one run printed"
    )


PORT = 9847
INTERVAL_S = 15.0
KEEP_ENDED_S = 6 * 3600.0
MAX_RUNS = 200


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    parser.add_argument("run", metavar="RUN", nargs="?", help="one run only (default: --all)")
    parser.add_argument("--all", action="store_true", help="every run of the runs folder")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    parser.add_argument(
        "--port", type=int, default=PORT, metavar="P", help=f"default {PORT}; 0: any free one"
    )
    parser.add_argument(
        "--bind",
        default="127.0.0.1",
        metavar="A",
        help="address to listen on (default 127.0.0.1; 0.0.0.0 for a Prometheus elsewhere)",
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=INTERVAL_S,
        metavar="S",
        help=f"seconds between looks at runs and scheduler (default {INTERVAL_S:g})",
    )
    parser.add_argument(
        "--keep-ended",
        default="6h",
        metavar="TIME",
        help="how long a run is shown after its end (default 6h)",
    )
    parser.add_argument(
        "--max-runs",
        type=int,
        default=MAX_RUNS,
        metavar="N",
        help=f"at most so many runs, living and newest first (default {MAX_RUNS})",
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help="where `watch --state-dir` keeps alerts, if it does"
    )


TOP_INTERVAL_S = 10.0


def add_top_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=TOP_INTERVAL_S,
        metavar="S",
        help=f"seconds between looks at runs and scheduler (default {TOP_INTERVAL_S:g})",
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help="where `watch --state-dir` keeps alerts, if it does"
    )


EXAMPLES_OF: dict[str, tuple[tuple[str, str], ...]] = {
    "watch": (
        ("watch latest", "one run, until it has ended"),
        ("watch --all --config alerts.yaml", "every run of ./runs, for ever"),
        ("watch --all --once --json", "one look, for cron and scripts"),
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
        ("top", "all runs of ./runs, live; Enter shows the logs of one, q leaves"),
        ("top --interval 30", "fewer looks"),
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
  python -m monitor diagnose slurm-4711.out slurm-4711.err   any trainer's logs, one verdict
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
    return carry_out(parser.parse_args(arguments))


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


def _diagnose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        metavar="FILE|RUN",
        nargs="+",
        help="log files of one job, or a run folder (or its name, or latest); - is standard input",
    )
    parser.add_argument("--attempt", type=int, metavar="N", help="of a run; default: the newest")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(handler=lazy("submitrain.monitor.diagnose.cli"))


def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("run", metavar="RUN", nargs="?", help="a run folder, its name, or latest")
    which.add_argument("--all", action="store_true", help="every run of the runs folder")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    parser.add_argument(
        "--interval",
        type=float,
        metavar="S",
        help="seconds between looks (default: monitor.interval_s)",
    )
    parser.add_argument("--once", action="store_true", help="look once, send, and leave")
    parser.add_argument("--json", action="store_true", help="one JSON object a run and look")
    _alerts_arguments(parser)
    parser.add_argument(
        "--state-dir", metavar="DIR", help="where to remember; default: in each run folder"
    )
    parser.set_defaults(handler=lazy("submitrain.monitor.watch.watch"))


def _test_alert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run whose channels are tried")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    _alerts_arguments(parser)
    parser.set_defaults(handler=lazy("submitrain.monitor.alerts.delivery"))


def _alerts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML with alerts and monitor sections for all runs, instead of each run's own",
    )


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, its name, or latest")
    parser.add_argument(
        "--html", metavar="FILE", help="where to write it (default: RUN/reports/report.html)"
    )
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(handler=lazy("submitrain.monitor.report.cli"))


def _audit_arguments(parser: argparse.ArgumentParser) -> None:

    add_audit_options(parser)
    parser.set_defaults(handler=lazy("submitrain.monitor.audit.cli"))


def _cost_arguments(parser: argparse.ArgumentParser) -> None:

    add_cost_options(parser)
    parser.set_defaults(handler=lazy("submitrain.monitor.accounting.cli"))


def _serve_arguments(parser: argparse.ArgumentParser) -> None:

    add_serve_options(parser)
    parser.set_defaults(handler=lazy("submitrain.monitor.serve.cli"))


def _top_arguments(parser: argparse.ArgumentParser) -> None:

    add_top_options(parser)
    parser.set_defaults(handler=lazy("submitrain.monitor.top.app"))


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("run", metavar="RUN", nargs="?", help="a run folder, its name, or latest")
    which.add_argument("--all", action="store_true", help="every run of the runs folder")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(handler=lazy("submitrain.monitor.status"))


COMMANDS: Commands = {
    "status": ("how one run is doing, or all", _status_arguments),
    "top": ("all runs live on a terminal, with the logs of a chosen one", _top_arguments),
    "serve": ("all runs as metrics for Prometheus", _serve_arguments),
    "watch": ("look at runs again and again, and send alerts", _watch_arguments),
    "test-alert": ("send a test message to every channel that is set up", _test_alert_arguments),
    "diagnose": ("the cause of a failure, from logs or a run folder", _diagnose_arguments),
    "report": ("one HTML file about a run, and a summary", _report_arguments),
    "cost": ("GPU hours, money and where they went, of any runs", _cost_arguments),
    "audit": ("who did what to a run, and whether anyone changed the record", _audit_arguments),
}
