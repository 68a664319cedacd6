"""How values are written for people, and how the end of a file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from submitrain.text import (
    bytes_text,
    count_text,
    counted,
    duration,
    last_lines,
    read_end,
    short_duration,
    utc,
)


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [
        (None, "", ""),
        (-3.0, "0 s", "0s"),
        (0.2, "0.2 s", "0s"),
        (12.3, "12 s", "12s"),
        (60.0, "1 min", "1m"),
        (247.0, "4 min 7 s", "4m"),
        (3600.0, "1 h", "1h00"),
        (7530.0, "2 h 5 min", "2h05"),
        (273_600.0, "3 d 4 h", "3d04h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float | None, long: str, short: str) -> None:
    assert (duration(seconds), short_duration(seconds)) == (long, short)


def test_what_is_not_known_is_written_as_asked() -> None:
    assert [one(None, unknown="-") for one in (duration, bytes_text, count_text, utc)] == ["-"] * 4


def test_sizes_counts_and_times() -> None:
    sizes = [bytes_text(value) for value in (999, 1500, 1.5e9, 2.5e12)]
    assert sizes == ["999 B", "1.5 kB", "1.5 GB", "2.5 TB"]
    counts = [count_text(value) for value in (950, 12_345, 1.2e6, 7e9)]
    assert counts == ["950", "12.3k", "1.2M", "7.0B"]
    assert [counted(1, "node"), counted(0, "node"), counted(4, "node")] == [
        "1 node",
        "0 nodes",
        "4 nodes",
    ]
    assert utc(1_767_225_600) == "2026-01-01 00:00:00"


def test_the_end_of_a_file_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first\n\nsecond \nthird")
    assert read_end(path) == path.read_bytes()
    assert read_end(path, 9) == b"third"
    assert read_end(path, 3) == b"ird", "a line longer than the limit: as much of it as fits"
    assert last_lines(path, 2) == ["second", "third"]
    assert last_lines(path, 9) == ["first", "second", "third"]
    assert last_lines(tmp_path / "missing", 2) == []
