"""Slurm's short form of many host names. Pure; imports nothing of this project."""

from __future__ import annotations

import re


def expand_nodes(text: str) -> list[str]:
    """Names of a host list: ``gpu[01-03,7],login`` is gpu01, gpu02, gpu03, gpu7, login.

    Several brackets in one name are expanded from left to right (scontrol(1), "show hostnames").
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names.extend(_expand_one(part))
    return names


def _expand_one(part: str) -> list[str]:
    match = re.search(r"\[([^\]]*)\]", part)
    if not match:
        return [part]
    numbers = [one for item in match.group(1).split(",") for one in _range(item)]
    rest = _expand_one(part[match.end() :]) if part[match.end() :] else [""]
    return [f"{part[: match.start()]}{number}{tail}" for number in numbers for tail in rest]


def _range(item: str) -> list[str]:
    first, dash, last = item.partition("-")
    if not dash or not (first.isdigit() and last.isdigit()):
        return [item]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
