"""Reading logs: blocks, gigantic lines, carriage returns, rubbish."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.monitor.diagnose import diagnose_files, scan, scan_file, scan_text
from submitrain.monitor.diagnose.match import rule_index
from submitrain.monitor.diagnose.scan import BLOCK_BYTES, PATIENCE

OOM = "torch.OutOfMemoryError: CUDA out of memory."


def test_carriage_returns_end_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    bars = b"\r".join(b"%d%%|###   |" % number for number in range(99))
    path.write_bytes(bars + f"\r{OOM}\r".encode())
    assert [one.text for one in scan_file(path)] == [OOM]


def test_a_message_in_a_gigantic_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("x " * BLOCK_BYTES + OOM + " y" * BLOCK_BYTES + "\nend\n")
    assert [one.line for one in scan_file(path)] == [1]


def test_a_gigantic_line_is_shown_short(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(OOM + "z" * BLOCK_BYTES)
    assert len(scan_file(path)[0].text) <= 400


def test_binary_rubbish_around_a_message_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(os.urandom(50_000) + f"\n{OOM}\n".encode() + os.urandom(50_000))
    assert diagnose_files([path]).kind == "cuda_oom"


def test_evidence_holds_no_control_characters() -> None:
    found = scan_text(f"\x1b[2J\x00\x07{OOM}\x08\x9b31m\n")
    assert found[0].text.isprintable()


def test_findings_of_a_flood_are_few_and_include_the_last(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"{OOM} {number}\n" for number in range(5000)))
    found = scan_file(path)
    assert (len(found) < 10, found[-1].line) == (True, 5000)


def test_a_failure_is_seen_after_very_many_lines_that_only_sound_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    healthy = "".join(f"validation error: 0.{number:03d} done\n" for number in range(PATIENCE * 4))
    path.write_text(f"{healthy}RuntimeError: validation error: 0.1 done\n")
    assert diagnose_files([path]).kind == "python_exception"


@pytest.mark.parametrize("size", [1, 7, 18, 20, 45, 60, 1000])
def test_reading_in_blocks_finds_what_one_reading_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    text = f"step 1\r\nKeyError: 'a'\nx\r{OOM}\nstep 2\n"
    path = tmp_path / "a.log"
    path.write_bytes(text.encode())
    expected = [(one.kind, one.line, one.offset) for one in scan_text(text, name="a")]
    monkeypatch.setattr(scan, "BLOCK_BYTES", max(size, len(OOM) + 2))
    found = [(one.kind, one.line, one.offset) for one in scan_file(path, name="a")]
    assert found == expected


WORDS = st.sampled_from(["error", "outofmemoryerror", "xid", "xids", "nan", "loss", "abortedly"])


@given(words=st.lists(WORDS | st.text(alphabet="aeorxnid", min_size=1, max_size=9), max_size=12))
def test_a_text_is_searched_for_the_words_that_lead_to_rules_and_no_others(
    words: list[str],
) -> None:
    index = rule_index()
    text = " ".join(["", *words, ""]).encode()
    places = list(index.suspicious(text))
    found = {word for _, word in places}
    leading = {one.encode() for one in words if index.rules_of(one.encode())}
    assert leading <= found <= {one.encode() for one in words}
    assert all(text[place : place + len(word)] == word for place, word in places)
