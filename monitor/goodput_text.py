"""The account of a run's time as text."""

from __future__ import annotations

from monitor.goodput import Goodput
from monitor.ledger import Category

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def headline(goodput: Goodput) -> str:
    """``effective 91.3 % of 3 h 12 min allocated``; empty before the first allocation."""
    if goodput.effective is None:
        return ""
    queued = f", {span(goodput.queued_us)} queued" if goodput.queued_us >= 1_000_000 else ""
    return (
        f"effective {goodput.effective:.1%} of {span(goodput.allocated_us)} allocated{queued}"
    ).replace("%", " %")


def rows(goodput: Goodput) -> list[tuple[str, str]]:
    """Each category that took time, the largest first: its name, and share, time, rank time."""
    unit = "GPU" if goodput.gpus else "rank"
    total = goodput.allocated_rank_us
    ordered = sorted(Category, key=lambda name: -goodput.rank_us[name])
    return [
        (
            str(name).replace("_", " "),
            f"{100 * goodput.rank_us[name] / total:5.1f} %  {span(goodput.wall_us[name])}, "
            f"{goodput.rank_us[name] / 3.6e9:.2f} {unit} hours",
        )
        for name in ordered
        if goodput.rank_us[name]
    ]


def span(microseconds: int) -> str:
    """A duration by its two largest units: ``3 h 12 min``, ``41 s``, ``0.20 s``."""
    seconds = microseconds / 1e6
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"
    for place, (size, unit) in enumerate(_UNITS):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            lower, name = _UNITS[place + 1] if place + 1 < len(_UNITS) else (1, "s")
            return f"{whole} {unit} {rest // lower} {name}"
    raise AssertionError(seconds)
