"""``python -m tests.faults matrix`` and ``python -m tests.faults storm``; see the package."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults.judge import Verdict
from tests.faults.report import print_report
from tests.faults.rows import Course
from tests.faults.stage import Stage
from tests.faults.storm import storm
from tests.faults.table import COURSES


def main(argv: Sequence[str] | None = None) -> int:
    """Play, print the table, exit 1 when a row failed."""
    asked = _parser().parse_args(argv)
    home = Path(asked.home or tempfile.mkdtemp(prefix="faults-"))
    stage = Stage(home)
    try:
        verdicts = [one for course in _courses(asked) for one in stage.verdicts(course)]
    finally:
        stage.close()
    shown = [one for one in verdicts if not asked.only or asked.only in f"{one.course}/{one.row}"]
    print_report(shown)
    if asked.json:
        Path(asked.json).write_text(json.dumps([one.as_json() for one in shown], indent=2) + "\n")
    return _conclude(shown, home, keep=bool(asked.home))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--home", help="folder for everything; default: one that goes again")
    commands = parser.add_subparsers(dest="command", required=True)
    matrix = commands.add_parser("matrix", help="every row of the table")
    matrix.add_argument("--only", metavar="NAME", help="courses and rows whose name has this in it")
    stormy = commands.add_parser("storm", help="random faults over one run")
    stormy.add_argument("--faults", type=int, default=20, metavar="N", help="default: 20")
    stormy.add_argument("--seed", type=int, default=1, help="default: 1")
    for command in (matrix, stormy):
        command.add_argument("--json", metavar="FILE", help="also write the verdicts there")
    return parser


def _courses(asked: argparse.Namespace) -> list[Course]:
    """What to play; rows of a course build on one another, so that it is played as a whole."""
    if asked.command == "storm":
        asked.only = None
        return [storm(asked.faults, asked.seed)]
    names = {
        course.name: [f"{course.name}/{row.name}" for row in course.rows]
        for course in COURSES.values()
    }
    chosen = [
        COURSES[name]
        for name, rows in names.items()
        if not asked.only or any(asked.only in row for row in rows)
    ]
    if not chosen:
        sys.exit(f"--only: no course or row has {asked.only!r} in its name; rows: {names}")
    return chosen


def _conclude(verdicts: Sequence[Verdict], home: Path, *, keep: bool) -> int:
    failed = [one for one in verdicts if one.problems]
    if not failed and not keep:
        shutil.rmtree(home)
        return 0
    print(f"{len(failed)} of {len(verdicts)} rows failed; everything is in {home}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
