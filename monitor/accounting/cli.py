"""Reads what costs rest on: run folders, and sacct once for all of them where it answers.

A bill as a table, CSV or JSON. Pure.

``python -m monitor cost``: read runs, book, sum up, print.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from submitrain.errors import UserError
from submitrain.events import Kind
from submitrain.monitor.accounting.bill import (
    HOUR_US,
    Bill,
    By,
    PriceTable,
    Row,
    day_us,
    make_bill,
    parse_prices,
)
from submitrain.monitor.accounting.charges import (
    NOBODY,
    JobFacts,
    Labels,
    RunFacts,
    charges_of,
    holdings_of,
    requested_type,
)
from submitrain.monitor.accounting.goodput import GoodputRecords, rank_events
from submitrain.monitor.accounting.time import Category, Span
from submitrain.run_facts import RunEvidence, read_evidence
from submitrain.run_folder import RunDir, chosen_runs
from submitrain.slurm.client import Ask, ask, epoch_s
from submitrain.status import JobView, RunState, job_views, status_of

_SEPARATOR = "\x1f"
_FIELDS = ("JobIDRaw", "Start", "End", "AllocTRES", "User", "Account", "QOS", "Partition", "WCKey")
_JOBS_A_CALL = 1000
SacctRow = Mapping[str, str]


def read_runs(folders: Sequence[Path], *, run: Ask = ask) -> tuple[list[RunFacts], str]:
    """Facts of these runs as of now, and why the accounting could not be asked ("" when it was)."""
    evidence = [read_evidence(folder) for folder in folders]
    views = job_views(evidence)
    job_ids = [
        str(line.get("job_id"))
        for one in evidence
        for line in one.submissions
        if line.get("cluster") == "slurm"
    ]
    rows, problem = accounting(job_ids, run=run) if job_ids else ([], "")
    facts = [_facts(one, views[one.folder.name], rows) for one in evidence]
    return facts, problem


def accounting(job_ids: Sequence[str], *, run: Ask = ask) -> tuple[list[SacctRow], str]:
    """Every allocation of these jobs by sacct, requeues included, and what went wrong.

    ``--duplicates`` is what makes sacct(1) show a requeued job's earlier stretches.
    """
    rows: list[SacctRow] = []
    for place in range(0, len(job_ids), _JOBS_A_CALL):
        ids = job_ids[place : place + _JOBS_A_CALL]
        command = ["sacct", "-X", "--duplicates", "-P", "-n", f"--delimiter={_SEPARATOR}"]
        answer = run([*command, f"--format={','.join(_FIELDS)}", f"--jobs={','.join(ids)}"])
        if answer.code != 0:
            return [], answer.error or f"sacct exited {answer.code}"
        for line in answer.out.splitlines():
            rows.append(dict(zip(_FIELDS, line.split(_SEPARATOR), strict=False)))
    return rows, ""


def _facts(evidence: RunEvidence, view: JobView, rows: Sequence[SacctRow]) -> RunFacts:
    run_dir = RunDir(evidence.folder)
    state = status_of(evidence, view).state
    labels, sbatch = _labels(evidence)
    own = {str(line.get("job_id")) for line in evidence.submissions}
    jobs = tuple(
        job for row in rows if row.get("JobIDRaw") in own and (job := job_facts(row, labels))
    )
    events = tuple(rank_events(run_dir.events(0)))
    records = GoodputRecords(
        attempts=evidence.attempts,
        events=events,
        submissions=evidence.submissions,
        jobs=tuple(job.span for job in jobs),
        now=time.time(),
        ended=state.ended,
        pending=state is RunState.QUEUED,
    )
    devices = (str(one.get("device")) for one in events if one["kind"] == Kind.SETUP)
    gpu_type = requested_type(sbatch) or next(devices, "").lower()
    return RunFacts(labels, records, jobs, gpu_type)


def job_facts(row: SacctRow, labels: Labels) -> JobFacts | None:
    """One row of sacct; None when it never held anything. ``labels`` are the run folder's."""
    start_s, end_s = epoch_s(row.get("Start")), epoch_s(row.get("End"))
    if start_s is None or (end_s is not None and end_s <= start_s):
        return None
    ended_us = None if end_s is None else round(end_s * 1e6)
    named = {
        "user": row.get("User"),
        "account": row.get("Account"),
        "qos": row.get("QOS"),
        "partition": row.get("Partition"),
        # A leading star says that the key is the user's default (sacct(1)); it may be all there is.
        "project": (row.get("WCKey") or "").lstrip("*"),
    }
    known = {key: value for key, value in named.items() if value}
    return JobFacts(
        Span(str(row["JobIDRaw"]), round(start_s * 1e6), ended_us),
        holdings_of(row.get("AllocTRES") or ""),
        replace(labels, **known),
    )


def _labels(evidence: RunEvidence) -> tuple[Labels, Mapping[str, Any]]:
    """Whom the run folder names, and the parameters of the newest submission that has some."""
    found = [_mapping(line.get("sbatch")) for line in evidence.submissions if line.get("sbatch")]
    sbatch = found[-1] if found else {}
    more = _mapping(sbatch.get("additional_parameters"))
    config = _config(evidence.folder)
    local = evidence.record.get("cluster") == "local"
    who = _mapping(evidence.record.get("who")).get("user")
    return Labels(
        run=evidence.folder.name,
        user=_word(who),
        account=_word(sbatch.get("account")),
        project=_word(more.get("wckey") or _mapping(config.get("wandb")).get("project")),
        partition="local" if local else _word(sbatch.get("partition")),
        qos=_word(sbatch.get("qos")),
    ), sbatch


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        return _mapping(yaml.safe_load(RunDir(folder).config.read_text()))
    except (OSError, yaml.YAMLError):
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(value: object) -> str:
    return str(value) if value else NOBODY


UNPRICED = "unpriced"
_SMALLEST = Decimal("0.000001")


def as_table(bill: Bill) -> str:
    """Groups and their total, then where the total went."""
    heading = [str(bill.by), "unit", "hours", "cost", "productive", "wasted", "attempts"]
    heading += ["jobs", "requeues"]
    rows = [_cells(row, bill.currency) for row in (*bill.rows, *bill.totals)]
    parts = [_aligned([heading, *rows], left=2)]
    for total in bill.totals:
        parts.append(f"\nwhere the {total.unit} hours went\n")
        parts.append(_split([(str(name), us) for name, us in total.split_us.items()], total))
        if total.wasted_us:
            parts.append(f"\n{total.unit} hours wasted, by cause\n")
            parts.append(_split(list(total.wasted_us.items()), total))
    return "".join(parts)


def as_csv(bill: Bill) -> str:
    """One line a group and unit; the total is left to the reader's sum."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    causes = sorted({cause for row in bill.rows for cause in row.wasted_us})
    heading = [str(bill.by), "unit", "hours", "cost", "currency", "unpriced_hours", "attempts"]
    heading += ["jobs", "requeues", *(f"{name}_hours" for name in Category)]
    writer.writerow([*heading, *(f"wasted_{cause}_hours" for cause in causes)])
    for row in bill.rows:
        money = UNPRICED if row.money is None else row.money
        counts = [row.attempts, row.allocations - row.requeues, row.requeues]
        split = [hours(row.split_us[name]) for name in Category]
        wasted = [hours(row.wasted_us.get(cause, 0)) for cause in causes]
        first = [row.group, row.unit, hours(row.used_us), money, bill.currency]
        writer.writerow([*first, hours(row.unpriced_us), *counts, *split, *wasted])
    return file.getvalue()


def as_json(bill: Bill) -> str:
    """All of it; hours and money are strings, so that no digit is lost."""
    value = {
        "by": str(bill.by),
        "currency": bill.currency or None,
        "groups": [_plain(row) for row in bill.rows],
        "totals": [_plain(row) for row in bill.totals],
    }
    return json.dumps(value, indent=2) + "\n"


def hours(units_us: int) -> str:
    """Unit-hours to a millionth: 4 ms."""
    return str((Decimal(units_us) / HOUR_US).quantize(_SMALLEST))


def money(row: Row, currency: str) -> str:
    """``12.30 EUR``; what has no price is said, and never counted as 0."""
    if row.money is None:
        return UNPRICED
    text = f"{row.money} {currency}".rstrip()
    if not row.unpriced_us:
        return text
    return f"{text} + {row.unpriced_us / HOUR_US:.2f} h {UNPRICED}"


def _cells(row: Row, currency: str) -> list[str]:
    used, productive = row.used_us, row.split_us[Category.PRODUCTIVE]
    share = f"{100 * productive / used:.1f} %" if used else "-"
    wasted = f"{sum(row.wasted_us.values()) / HOUR_US:.2f}"
    counts = (row.attempts, row.allocations - row.requeues, row.requeues)
    cost = money(row, currency)
    return [
        *(row.group, str(row.unit), f"{used / HOUR_US:.2f}", cost, share, wasted),
        *(str(count) for count in counts),
    ]


def _split(parts: list[tuple[str, int]], total: Row) -> str:
    rows = [
        ["", name.replace("_", " "), f"{us / HOUR_US:.2f}", f"{100 * us / total.used_us:.1f} %"]
        for name, us in sorted(parts, key=lambda one: -one[1])
        if us
    ]
    return _aligned(rows, left=2) if rows else ""


def _aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Rows as text; the first ``left`` columns hold words, the others numbers."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(w) if place < left else cell.rjust(w) for place, (cell, w) in pairs]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _plain(row: Row) -> dict[str, Any]:
    return {
        "group": row.group,
        "unit": str(row.unit),
        "hours": hours(row.used_us),
        "unit_us": row.used_us,
        "cost": None if row.money is None else str(row.money),
        "unpriced_hours": hours(row.unpriced_us),
        "attempts": row.attempts,
        "jobs": row.allocations - row.requeues,
        "requeues": row.requeues,
        "split_hours": {str(name): hours(us) for name, us in row.split_us.items()},
        "wasted_hours": {cause: hours(us) for cause, us in sorted(row.wasted_us.items())},
    }


# ruff: noqa: T201 - printing is what a command line does


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
