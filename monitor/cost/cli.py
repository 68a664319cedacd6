"""``python -m monitor cost``: read runs, book, sum up, print."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from monitor.chosen import chosen_runs
from monitor.cost.bill import By, make_bill
from monitor.cost.charges import charges_of
from monitor.cost.prices import PriceTable, day_us, parse_prices
from monitor.cost.read import read_runs
from monitor.cost.text import as_csv, as_json, as_table
from train.errors import UserError

_FORMS = {"table": as_table, "csv": as_csv, "json": as_json}


def main(options: argparse.Namespace) -> int:
    """Print the bill of the chosen runs."""
    folders = chosen_runs(
        options.runs, everything=options.all, runs_dir=Path(options.runs_dir).expanduser()
    )
    prices = _prices(options.prices)
    since_us = day_us(options.since, "--since") if options.since else 0
    until_us = day_us(options.until, "--until") if options.until else 2**62
    if until_us <= since_us:
        raise UserError(f"--until: expected a day after {options.since}, got {options.until}")
    facts, problem = read_runs(folders)
    charges = (charge for one in facts for charge in charges_of(one))
    bill = make_bill(charges, prices, By(options.by), since_us=since_us, until_us=until_us)
    print(_FORMS[options.format](bill), end="")
    if problem:
        print(
            f"note: without the scheduler's accounting ({problem}): hours are those that the run "
            "folders show",
            file=sys.stderr,
        )
    return 0


def _prices(name: str | None) -> PriceTable:
    if name is None:
        return PriceTable()
    try:
        text = Path(name).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prices: expected a YAML file, got {name}: {error}") from error
    return parse_prices(text, name)
