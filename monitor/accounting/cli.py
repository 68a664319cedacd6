"""``python -m monitor cost``: reads runs, asks sacct once for all, prints what they cost."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from submitrain.errors import UserError
from submitrain.events import Kind, mapping
from submitrain.monitor.accounting.cost import (
    HOUR_US,
    NOBODY,
    Bill,
    By,
    Labels,
    Row,
    RunUsage,
    charges_of,
    make_bill,
)
from submitrain.monitor.accounting.prices import PriceTable, day_us, parse_prices, requested_type
from submitrain.monitor.accounting.records import (
    RunRecords,
    SacctJob,
    rank_events,
    read_allocations,
    slurm_job_ids,
)
from submitrain.monitor.accounting.timeline import Category
from submitrain.run_facts import RunEvidence, read_evidence
from submitrain.run_folder import RunDir, select_runs
from submitrain.slurm.client import Ask, ask
from submitrain.status import JobView, RunState, job_views, status_of
from submitrain.text import aligned


def read_runs(folders: Sequence[Path], *, run: Ask = ask) -> tuple[list[RunUsage], str]:
    """What these runs used as of now, and why sacct could not be asked ("" when it was)."""
    evidence = [read_evidence(folder) for folder in folders]
    views = job_views(evidence)
    job_ids = [job_id for one in evidence for job_id in slurm_job_ids(one.submissions)]
    jobs, problem = read_allocations(job_ids, run=run)
    return [_usage(one, views[one.folder.name], jobs) for one in evidence], problem


def _usage(evidence: RunEvidence, view: JobView, jobs: Sequence[SacctJob]) -> RunUsage:
    state = status_of(evidence, view).state
    own = {str(line.get("job_id")) for line in evidence.submissions}
    events = tuple(rank_events(RunDir(evidence.folder).events(0)))
    records = RunRecords(
        attempts=evidence.attempts,
        events=events,
        submissions=evidence.submissions,
        jobs=tuple(job for job in jobs if job.job_id in own),
        now=time.time(),
        ended=state.ended,
        pending=state is RunState.QUEUED,
    )
    found = [mapping(line.get("sbatch")) for line in evidence.submissions if line.get("sbatch")]
    sbatch = found[-1] if found else {}
    devices = (str(one.get("device")) for one in events if one["kind"] == Kind.SETUP)
    gpu_type = requested_type(sbatch) or next(devices, "").lower()
    return RunUsage(_labels(evidence, sbatch), records, gpu_type)


def _labels(evidence: RunEvidence, sbatch: Mapping[str, Any]) -> Labels:
    """Whom the run folder names; ``sbatch``: the parameters of the newest submission."""
    try:
        config = mapping(yaml.safe_load(RunDir(evidence.folder).config.read_text()))
    except (OSError, yaml.YAMLError):
        config = {}
    wckey = mapping(sbatch.get("additional_parameters")).get("wckey")
    local = evidence.record.get("cluster") == "local"
    named = {
        "user": mapping(evidence.record.get("who")).get("user"),
        "account": sbatch.get("account"),
        "project": wckey or mapping(config.get("wandb")).get("project"),
        "partition": "local" if local else sbatch.get("partition"),
        "qos": sbatch.get("qos"),
    }
    return Labels(evidence.folder.name, **{key: str(v or NOBODY) for key, v in named.items()})


UNPRICED = "unpriced"
_SMALLEST = Decimal("0.000001")


def as_table(bill: Bill) -> str:
    """Groups and their total, then where the total went."""
    heading = [str(bill.by), "unit", "hours", "cost", "productive", "wasted", "attempts"]
    heading += ["jobs", "requeues"]
    rows = []
    for row in (*bill.rows, *bill.totals):
        used, productive = row.used_us, row.split_us[Category.PRODUCTIVE]
        share = f"{100 * productive / used:.1f} %" if used else "-"
        wasted = f"{sum(row.wasted_us.values()) / HOUR_US:.2f}"
        counts = (row.attempts, row.allocations - row.requeues, row.requeues)
        first = [row.group, str(row.unit), f"{used / HOUR_US:.2f}", money(row, bill.currency)]
        rows.append([*first, share, wasted, *map(str, counts)])
    parts = [aligned([heading, *rows], left=2)]
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
        one = _plain(row)
        first = [one["group"], one["unit"], one["hours"], one["cost"] or UNPRICED, bill.currency]
        counts = [one["unpriced_hours"], one["attempts"], one["jobs"], one["requeues"]]
        wasted = [hours(row.wasted_us.get(cause, 0)) for cause in causes]
        writer.writerow([*first, *counts, *one["split_hours"].values(), *wasted])
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


def _split(parts: list[tuple[str, int]], total: Row) -> str:
    rows = [
        ["", name.replace("_", " "), f"{us / HOUR_US:.2f}", f"{100 * us / total.used_us:.1f} %"]
        for name, us in sorted(parts, key=lambda one: -one[1])
        if us
    ]
    return aligned(rows, left=2) if rows else ""


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


_FORMS = {"table": as_table, "csv": as_csv, "json": as_json}


def main(options: argparse.Namespace) -> int:
    """Print the bill of the chosen runs."""
    folders = select_runs(
        options.runs, everything=options.all, runs_dir=Path(options.runs_dir).expanduser()
    )
    prices = PriceTable()
    if options.prices is not None:
        try:
            text = Path(options.prices).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prices: expected a YAML file, got {options.prices}: {error}"
            ) from error
        prices = parse_prices(text, options.prices)
    since_us = day_us(options.since, "--since") if options.since else 0
    until_us = day_us(options.until, "--until") if options.until else 2**62
    if until_us <= since_us:
        raise UserError(f"--until: expected a day after {options.since}, got {options.until}")
    usage, problem = read_runs(folders)
    charges = (charge for one in usage for charge in charges_of(one))
    bill = make_bill(charges, prices, By(options.by), since_us=since_us, until_us=until_us)
    print(_FORMS[options.format](bill), end="")
    if problem:
        print(
            f"note: without the scheduler's accounting ({problem}): hours are those that the run "
            "folders show",
            file=sys.stderr,
        )
    return 0
