"""Options of ``python -m monitor cost``. Light: every start of the command line imports it."""

from __future__ import annotations

import argparse


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
