"""Slurm's short form of many host names. Pure; imports nothing of this project."""

from __future__ import annotations

import itertools
import re

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
