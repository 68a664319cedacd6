"""What one line says besides its message: rank, node and time; and how to show it safely. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import PurePath

from monitor.diagnose.model import Moment

MAX_SHOWN = 400
"""Characters of a line that are shown as evidence."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffd]+")
_TASK_PREFIX = re.compile(r"^\s*(\d{1,6}):\s")
_RANK_PREFIX = re.compile(r"^\s*\[(?:rank\s*)?(\d{1,6})\]:\s?|^\s*\[rank[ :]*(\d{1,6})\]:?\s?")
_RANK = re.compile(
    r"\[(?:[^\]\[]{0,60}\s)?rank[ :]+(\d{1,6})\]|\brank\s*[:=]\s*(\d{1,6})\b(?! \(local)|"
    r"\brank (\d{1,6})\b|\btasks? (\d{1,6})\b(?=[\d,-]*:)|\bglobal_rank[=: ]+(\d{1,6})",
    re.IGNORECASE,
)
_NODE = re.compile(
    r"^slurmstepd-([\w.-]+):|"
    r"\bON ([\w.-]+) CANCELLED|DUE TO [A-Z ]+ on ([\w.-]+)|"
    r"\bsrun: error: ([\w.-]+): tasks? |"
    r"\bnode fail\w* on ([\w.-]+)|failed on node ([\w.-]+)|"
    r"^(?:\[?\d+\]?: ?)?([A-Za-z][\w.-]*):\d+:\d+ \[\d+\] |"
    r"^\w{3} [ \d]\d \d\d:\d\d:\d\d ([\w.-]+) kernel|"
    r"^\d{4}-\d\d-\d\dT\S+ ([\w.-]+) kernel|"
    r"\bon ([\w.-]+): this job is|"
    r"\bnodes? ([\w.-]+\d[\w.-]*) (?:is |are |has |went |not )",
    re.IGNORECASE,
)
_ISO = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[T _](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?")
_GLOG = re.compile(r"\b[EWIF](\d{1,2})(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{1,9})")
_KERNEL = re.compile(r"^\[ *(\d{1,10}\.\d{3,6})\] ")
_FILE_RANK = re.compile(r"(?:^|[._-])rank[_-]?(\d{1,6})(?=[._-]|$)|^\d+_(\d{1,6})_log\.")


def clean(raw: bytes) -> str:
    """The line as text, without terminal escapes; rubbish becomes blanks."""
    text = raw.decode("utf-8", "replace")
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return _CONTROL.sub(" ", text).rstrip()


def shown(text: str) -> str:
    """The line as evidence, cut to a length that people read."""
    text = text.strip()
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."


def without_prefix(line: str) -> str:
    """The message behind ``[rank3]: `` or srun's ``3: ``."""
    line = _RANK_PREFIX.sub("", line, count=1)
    return _TASK_PREFIX.sub("", line, count=1).lstrip()


def rank_of(line: str) -> int | None:
    """The rank that the line names, by its prefix or in its text."""
    match = _RANK_PREFIX.match(line) or _TASK_PREFIX.match(line) or _RANK.search(line)
    return _first_number(match)


def rank_of_file(path: str) -> int | None:
    """The rank in a log file's name: ``rank00003.err``, submitit's ``1234_3_log.err``."""
    return _first_number(_FILE_RANK.search(PurePath(path).name))


def node_of(line: str) -> str | None:
    """The host that the line names."""
    match = _NODE.search(line)
    if match is None:
        return None
    return next((group for group in match.groups() if group), None)


def moment_of(line: str) -> Moment | None:
    """The time that the line carries. glog writes no year, the kernel seconds since its start."""
    head = line[:160]
    if match := _ISO.search(head):
        year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
        fraction = float(f"0.{match[7]}") if match[7] else 0.0
        return _moment("wall", (year, month, day, hour, minute, second), fraction)
    if match := _GLOG.search(head):
        month, day, hour, minute, second = (int(match[i]) for i in range(1, 6))
        return _moment("glog", (2000, month, day, hour, minute, second), float(f"0.{match[6]}"))
    if match := _KERNEL.match(head):
        return Moment("kernel", float(match[1]))
    return None


def _moment(
    clock: str, parts: tuple[int, int, int, int, int, int], fraction: float
) -> Moment | None:
    try:
        return Moment(clock, datetime(*parts).timestamp() + fraction)
    except (ValueError, OverflowError, OSError):
        return None


def _first_number(match: re.Match[str] | None) -> int | None:
    if match is None:
        return None
    return next((int(group) for group in match.groups() if group), None)
