"""Options of ``python -m monitor audit``. Light: every start of the command line imports it."""

from __future__ import annotations

import argparse


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
