"""How measurements are told: the machine, one line per number, its aim beside it."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Aim:
    """What a number is meant to be at least, or at most."""

    bound: float
    at_least: bool = True

    def verdict(self, value: float) -> str:
        """The aim in words, and whether ``value`` meets it."""
        met = value >= self.bound if self.at_least else value <= self.bound
        words = "at least" if self.at_least else "at most"
        return f"aim {words} {self.bound:g}: {'met' if met else 'MISSED'}"


def at_least(bound: float) -> Aim:
    """More is better."""
    return Aim(bound)


def at_most(bound: float) -> Aim:
    """Less is better."""
    return Aim(bound, at_least=False)


def say(name: str, value: float, aim: Aim | None = None, *, unit: str = "", note: str = "") -> None:
    """Print one number, its aim and how it was come by."""
    shown = f"{value:.2f}{unit}"
    parts = [f"{name:<58} {shown:>12}"]
    if aim is not None:
        parts.append(aim.verdict(value))
    if note:
        parts.append(note)
    print("  ".join(parts), flush=True)


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    """Print numbers with two decimals under ``title``, one line per row."""
    print(f"{title:<34}" + "".join(f"{column:>16}" for column in columns))
    for name, values in rows.items():
        print(f"  {name:<32}" + "".join(f"{value:>16.2f}" for value in values))


def spread(values: Sequence[float]) -> str:
    """The values that a median was taken of."""
    return f"of {' '.join(f'{value:.2f}' for value in sorted(values))}"


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, str]:
    """Median of the ratios of paired rounds, and all of them."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), spread(ratios)


def machine() -> str:
    """Processor, cores, memory and how busy it is: what seconds are worth here."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{_processor()}, {cores} cores, {memory_gib:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, load {load:.1f} at the start"
    )


def head(what: str) -> None:
    """Print what is measured, and where."""
    print(f"== {what}\n   {machine()}", flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
