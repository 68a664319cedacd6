"""``python -m monitor status``: how runs are doing, as a table of all and as labelled lines of one.

``python -m launcher status`` and ``list`` print the same. Of a run that has ended on Slurm it tells
how much of what it held it used, by sacct: an estimate, as seff(1) makes it. Memory is sampled by
Slurm, and the largest task stands for all of its step; a job that ended within a sampling interval
shows less than it used.
"""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from submitrain.monitor.accounting.goodput import category_rows, headline, read_goodput
from submitrain.run_folder import find_run, list_runs
from submitrain.slurm.client import Ask, ask, query_sacct
from submitrain.status import RunState, RunStatus, read_statuses
from submitrain.text import bytes_text, duration

_FIELDS = "JobIDRaw,State,ElapsedRaw,NCPUS,TotalCPU,MaxRSS,NTasks,AllocTRES"
_PIPE_WIDTH = 250
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
Row = Mapping[str, str]


@dataclass(frozen=True)
class Efficiency:
    """Shares of the allocation, None where unknown; ``why_unknown`` says why."""

    cpu: float | None = None
    """CPU time over CPUs times elapsed time, all jobs of the run together."""
    memory: float | None = None
    """Largest use of a step over the memory of its job."""
    mem_bytes: int | None = None
    why_unknown: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "estimate": True}


def read_efficiency(job_ids: Sequence[str], *, run: Ask = ask) -> Efficiency:
    """What these jobs used, requeues included; one call of sacct."""
    rows, problem = query_sacct(job_ids, _FIELDS, steps=True, run=run)
    return Efficiency(why_unknown=problem) if problem else efficiency_of(rows)


def efficiency_of(rows: Sequence[Row]) -> Efficiency:
    """The same from sacct's rows, where a job's row is followed by those of its steps."""
    used_s = held_s = 0.0
    mem_bytes, memory, held = None, None, 0
    for row in rows:
        if "." not in row["JobIDRaw"]:
            match = re.search(r"(?:^|,)mem=([\d.]+[KMGT]?)", row["AllocTRES"])
            held = size_bytes(match.group(1)) if match else 0
            used_s += cpu_seconds(row["TotalCPU"])
            held_s += int(row["ElapsedRaw"] or 0) * int(row["NCPUS"] or 0)
            continue
        peak, tasks = size_bytes(row["MaxRSS"]), int(row["NTasks"] or 1)
        if peak and (mem_bytes is None or peak * tasks > mem_bytes):
            mem_bytes, memory = peak * tasks, peak * tasks / held if held else None
    if not held_s:
        return Efficiency(why_unknown="the accounting knows no time of its jobs")
    return Efficiency(used_s / held_s, memory, mem_bytes)


def cpu_seconds(text: str) -> float:
    """Seconds of ``[DD-[HH:]]MM:SS[.mmm]`` (sacct(1), TotalCPU); 0 for nothing."""
    days, _, rest = text.rpartition("-")
    seconds = 0.0
    for part in rest.split(":") if rest else ():
        seconds = seconds * 60 + float(part)
    return seconds + 86400 * int(days or 0)


def size_bytes(text: str) -> int:
    """Bytes of ``123``, ``123K``, ``1.5G``; 0 for nothing."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text.strip())
    return int(float(match.group(1)) * _UNITS[match.group(2)]) if match else 0


def runs_table(found: Sequence[RunStatus]) -> Table:
    """One line for every run."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "state", "step", "loss", "val loss", "tokens/s", "ETA", "cluster", "job"):
        table.add_column(name, no_wrap=name == "run")
    for one in found:
        table.add_row(
            one.run_id,
            str(one.state),
            f"{one.step}/{one.total_steps}" if one.total_steps else str(one.step),
            _number(one.loss, "{:.4f}"),
            _number(one.validation_loss, "{:.4f}"),
            _number(one.tokens_per_s, "{:,.0f}"),
            duration(one.eta_s),
            one.cluster,
            one.job_ids[-1] if one.job_ids else "",
        )
    return table


def status_rows(found: RunStatus) -> list[tuple[str, str]]:
    """What there is to say of one run, with its labels."""
    total = f" of {found.total_steps}" if found.total_steps else ""
    activity, memory = found.last_activity_at, bytes_text(found.mem_bytes)
    causes = ", ".join(f"{count} x {cause}" for cause, count in found.restarts.items())
    skipped = f"{found.skipped_steps} skipped steps, {found.rollbacks} rollbacks"
    # The automatic interval between checkpoints, where there is one and it is known.
    interval = "" if found.state.ended else duration(found.ckpt_interval_s)
    rows = [
        ("run", found.run_id),
        ("state", f"{found.state}" + (f": {found.why}" if found.why else "")),
        ("next step", found.todo),
        ("cluster", f"{found.cluster}, job {', '.join(found.job_ids) or 'none'}"),
        ("nodes", ", ".join(found.nodes)),
        ("preflight", found.preflight),
        ("attempt", f"{found.attempt}" + (f"; before it: {causes}" if causes else "")),
        ("step", f"{found.step}{total}"),
        ("loss", _number(found.loss, "{:.4f}")),
        ("validation loss", _number(found.validation_loss, "{:.4f}")),
        ("learning rate", _number(found.lr, "{:.3e}")),
        ("tokens/s", _number(found.tokens_per_s, "{:,.0f}")),
        ("memory", memory and f"{memory} at most, rank 0"),
        ("ETA", duration(found.eta_s)),
        ("last update", f"{duration(round(time.time() - activity))} ago" if activity else ""),
        ("checkpoints", ", ".join(str(step) for step in found.checkpoints)),
        ("newest checkpoint", _newest_checkpoint(found)),
        ("saves", interval and f"automatically, every {interval}"),
        ("skipped", skipped if found.skipped_steps or found.rollbacks else ""),
        ("folder", found.folder),
    ]
    return [(label, text) for label, text in rows if text]


def efficiency_rows(found: Efficiency | None) -> list[tuple[str, str]]:
    """How much was used of what was held; that it is an estimate is said each time."""
    if found is None:
        return []
    if found.why_unknown:
        return [("efficiency", f"unknown: {found.why_unknown}")]
    size = f" ({bytes_text(found.mem_bytes)})" if found.mem_bytes else ""
    cpu = "unknown" if found.cpu is None else f"about {found.cpu:.0%} (estimate)"
    memory = "unknown" + size if found.memory is None else f"about {found.memory:.0%}{size}"
    memory += "" if found.memory is None else " (estimate)"
    return [("CPU used", cpu), ("memory used", memory)]


def _newest_checkpoint(found: RunStatus) -> str:
    if not found.checkpoints:
        return ""
    parts = [f"step {found.checkpoints[-1]} of {len(found.checkpoints)} kept"]
    if found.checkpoint_at is not None:
        parts.append(f"{duration(round(time.time() - found.checkpoint_at))} ago")
    if found.checkpoint_bytes is not None:
        parts.append(bytes_text(found.checkpoint_bytes))
    if found.checkpoint_save_s is not None:
        parts.append(f"saved in {found.checkpoint_save_s:.1f} s")
    return ", ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def main(options: argparse.Namespace) -> int:
    """Show one run or all."""
    runs_dir = Path(options.runs_dir).expanduser()
    if options.all:
        folders = [folder.resolve() for folder in reversed(list_runs(runs_dir))]
        show_runs(see_all(folders), as_json=options.json, runs_dir=runs_dir)
    else:
        [found] = see_all([find_run(options.run, runs_dir)])
        show_run(found, as_json=options.json)
    return 0


def see_all(folders: Sequence[Path]) -> list[RunStatus]:
    """How these runs are doing; one query of the scheduler. Of many, a bad one is named aside."""

    def trouble(folder: Path, error: Exception) -> None:
        print(f"warning: {folder.name} cannot be read: {error}", file=sys.stderr)

    return read_statuses(folders, trouble if len(folders) > 1 else None)


def show_runs(found: Sequence[RunStatus], *, as_json: bool, runs_dir: Path) -> None:
    """One line for every run."""
    if as_json:
        print(json.dumps([status.as_json() for status in found], indent=2))
    elif not found:
        print(f"no runs in {runs_dir.absolute()}")
    else:
        console().print(runs_table(found))


def show_run(found: RunStatus, *, as_json: bool) -> None:
    """Everything about one run; asks sacct what it used once it has ended."""
    pending = found.state is RunState.QUEUED
    goodput = read_goodput(Path(found.folder), ended=found.state.ended, pending=pending)
    efficiency = None
    if found.state.ended and found.cluster == "slurm" and found.job_ids:
        efficiency = read_efficiency(found.job_ids)
    if as_json:
        values = {**found.as_json(), "goodput": goodput.as_json()}
        values["efficiency"] = efficiency.as_json() if efficiency else None
        print(json.dumps(values, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [*status_rows(found), *efficiency_rows(efficiency)]
    if line := headline(goodput):
        rows.append(("time", line))
        # Where the rest of the time went is told once the run has ended.
        parts = category_rows(goodput) if found.state.ended else []
        rows += [("", f"{text}  {name}") for name, text in parts]
    for label, text in rows:
        table.add_row(label, Text(text))
    console().print(table, markup=False)


def console() -> Console:
    """Standard output; where it is no terminal nothing is folded at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
