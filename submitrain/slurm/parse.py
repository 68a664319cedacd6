"""Values as Slurm's programs print them: host lists, fields, times, sizes, TRES. Pure.

The output is that of Slurm 22.05 and later, with pinned fields and epoch times.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import datetime

from submitrain.config.types import parse_duration_s

SEPARATOR = "\x1f"
"""Between the columns that we ask for: no name or comment holds it."""
UNLIMITED = frozenset(["", "UNLIMITED", "INFINITE", "N/A", "NONE", "(null)", "-1"])
_UNITS = {"": 1, "K": 2**-10, "M": 1, "G": 2**10, "T": 2**20, "P": 2**30}
_FIELD = re.compile(r"(?:^|\s)([A-Z][A-Za-z_/:]*)=")
_PART = re.compile(r"(?:[^,\s\[]|\[[^\]]*\])+")
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def expand_nodes(text: str) -> list[str]:
    """Names of a host list: ``gpu[01-03,7],login`` is gpu01, gpu02, gpu03, gpu7, login.

    Several brackets in one name are expanded in the order of scontrol(1), "show hostnames": the
    last one varies fastest, then the first, the second and so on (measured with 22.05).
    """
    return [name for part in _PART.findall(text) for name in _expand_one(part)]


def _expand_one(part: str) -> list[str]:
    pieces = _BRACKETS.split(part)
    fixed, brackets = pieces[::2], [_numbers(one) for one in pieces[1::2]]
    if not brackets:
        return [part]
    names = []
    for chosen in itertools.product(*reversed(brackets[:-1]), brackets[-1]):
        numbers = [*reversed(chosen[:-1]), chosen[-1], ""]
        names.append("".join(map("".join, zip(fixed, numbers, strict=True))))
    return names


def _numbers(text: str) -> list[str]:
    return [number for item in text.split(",") for number in _range(item.strip())]


def _range(item: str) -> list[str]:
    first, dash, last = item.partition("-")
    if not dash or not (first.isdigit() and last.isdigit()):
        return [item]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def parse_scontrol(text: str) -> dict[str, str]:
    """Fields of the first record in the output of ``scontrol show ... --oneliner``.

    A field begins with a capital after white space, so ``ReqNodeList=`` is not taken for
    ``NodeList=``, and values may hold commas, blanks and equal signs (``TRES=cpu=1,mem=2G``).
    """
    line = text.strip().partition("\n")[0]
    matches = list(_FIELD.finditer(line))
    ends = [match.start() for match in matches[1:]] + [len(line)]
    fields: dict[str, str] = {}
    for match, end in zip(matches, ends, strict=True):
        # The first one holds: free text at the end (Comment, StdOut) may look like a field.
        fields.setdefault(match.group(1), line[match.end() : end].strip())
    return fields


def parse_records(text: str) -> Iterator[dict[str, str]]:
    """Fields of every record in the output of ``scontrol show ... --oneliner``."""
    for line in text.splitlines():
        if "=" in line:  # not "No reservations in the system"
            yield parse_scontrol(line)


def parse_rows(text: str, names: str, separator: str = SEPARATOR) -> list[dict[str, str]]:
    """Rows of a table by the names of its columns, which stand between commas in ``names``.

    A row that ends early has empty values; a line that is no row is left out.
    """
    columns = names.split(",")
    rows = [[*line.split(separator), *[""] * len(columns)] for line in text.splitlines()]
    return [
        {name: value.strip() for name, value in zip(columns, row, strict=False)}
        for row in rows
        if len(row) > len(columns) + 1
    ]


def epoch_s(text: str | None) -> float | None:
    """Seconds since the epoch of a time Slurm printed: ``%s``, or ISO in local time; else None."""
    text = word(text)
    if not text:
        return None
    if text.isdigit():
        return float(text) or None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def word(text: str | None) -> str:
    """The text, or nothing where Slurm prints a word that means nothing."""
    text = (text or "").strip()
    return "" if text in {"None", "(null)", "N/A", "Unknown", "NONE", "n/a"} else text


def leading_integer(text: str | None) -> int | None:
    """16 of ``16+``, as sinfo prints for nodes with 16 and more; None for no number."""
    match = re.match(r"\d+", text or "")
    return int(match.group()) if match else None


def duration_s(text: str | None, *, unlimited: int | None = None) -> int | None:
    """Seconds of a time limit; None for what is none (Partition_Limit), ``unlimited`` for ever."""
    if (text or "").upper() in ("UNLIMITED", "INFINITE"):
        return unlimited
    try:
        return parse_duration_s(text)
    except ValueError:
        return None


def names_of(text: str) -> frozenset[str]:
    """Names between commas, without words that stand for none."""
    return frozenset(name for name in text.split(",") if name and name not in UNLIMITED)


def count_of(text: str) -> int | None:
    """A limit that is a number; None for none."""
    return None if text.upper() in UNLIMITED or not text.isdigit() else int(text)


def megabytes(text: str) -> int | None:
    """MiB of Slurm's ``64G``, ``16000M`` or ``16000`` (MiB); None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)[Bnc]?", text.strip())
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def parse_tres(text: str) -> dict[str, int]:
    """``cpu=32,mem=64G,node=4,gres/gpu=8`` as numbers; memory in MiB."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        number = megabytes(value) if name == "mem" else count_of(value)
        if equals and number is not None:
            found[name.strip()] = number
    return found


def parse_gres(text: str) -> dict[str, int]:
    """GPUs by type in a node's ``Gres=gpu:h100:8(S:0-1),gpu:a100:2``."""
    found: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = part.split(":")
        if name != "gpu" or not rest or not rest[-1].isdigit():
            continue
        kind = rest[0] if len(rest) > 1 else ""
        found[kind] = found.get(kind, 0) + int(rest[-1])
    return found
