"""How much of what a job held it used, by sacct: an estimate, as seff(1) makes it.

Memory is sampled by Slurm, and the largest task stands for all of its step; a job that ended within
a sampling interval shows less than it used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monitor.slurm import Ask, ask

_SEPARATOR = "\x1f"
_FIELDS = ("JobIDRaw", "State", "ElapsedRaw", "NCPUS", "TotalCPU", "MaxRSS", "NTasks", "AllocTRES")
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
    command = ["sacct", "--duplicates", "-P", "-n", "--noconvert", f"--delimiter={_SEPARATOR}"]
    answer = run([*command, f"--format={','.join(_FIELDS)}", f"--jobs={','.join(job_ids)}"])
    if answer.code != 0:
        return Efficiency(why_unknown=answer.error or f"sacct exited {answer.code}")
    lines = answer.out.splitlines()
    return efficiency_of(
        [dict(zip(_FIELDS, line.split(_SEPARATOR), strict=False)) for line in lines]
    )


def efficiency_of(rows: Sequence[Row]) -> Efficiency:
    """The same from sacct's rows, where a job's row is followed by those of its steps."""
    used_s = held_s = 0.0
    mem_bytes, memory, held = None, None, 0
    for row in rows:
        if "." not in row["JobIDRaw"]:
            held = _tres_mem(row["AllocTRES"])
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


def _tres_mem(tres: str) -> int:
    match = re.search(r"(?:^|,)mem=([\d.]+[KMGT]?)", tres)
    return size_bytes(match.group(1)) if match else 0
