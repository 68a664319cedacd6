"""Options of ``python -m monitor top``."""

from __future__ import annotations

import argparse

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
