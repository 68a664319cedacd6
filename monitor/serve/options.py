"""Options of ``python -m monitor serve``."""

from __future__ import annotations

import argparse

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
