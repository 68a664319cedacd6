"""The command line of the monitor: ``python -m monitor COMMAND``.

Exit codes: 0 ok, 2 the user's input is wrong. Imports nothing heavy before a command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from monitor.commandline import Commands, add_commands, carry_out, lazy
from monitor.examples import EXAMPLES_OF

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
    parser.set_defaults(handler=lazy("monitor.diagnose.cli"))


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
    parser.set_defaults(handler=lazy("monitor.watch_cli"))


def _test_alert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run whose channels are tried")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    _alerts_arguments(parser)
    parser.set_defaults(handler=lazy("monitor.alerts.trial"))


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
    parser.set_defaults(handler=lazy("monitor.report.cli"))


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    from monitor.audit.options import add_audit_options

    add_audit_options(parser)
    parser.set_defaults(handler=lazy("monitor.audit.cli"))


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
    from monitor.cost.options import add_cost_options

    add_cost_options(parser)
    parser.set_defaults(handler=lazy("monitor.cost.cli"))


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    from monitor.serve.options import add_serve_options

    add_serve_options(parser)
    parser.set_defaults(handler=lazy("monitor.serve.cli"))


def _top_arguments(parser: argparse.ArgumentParser) -> None:
    from monitor.top.options import add_top_options

    add_top_options(parser)
    parser.set_defaults(handler=lazy("monitor.top.cli"))


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("run", metavar="RUN", nargs="?", help="a run folder, its name, or latest")
    which.add_argument("--all", action="store_true", help="every run of the runs folder")
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of run folders (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(handler=lazy("monitor.status_cli"))


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
