"""Reading logs as they grow: offsets, rotation, truncation, gigantic lines, rubbish."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.monitor.diagnose import diagnose_files, scan_file, scan_text
from submitrain.monitor.diagnose.match import rule_index
from submitrain.monitor.diagnose.scan import BLOCK_BYTES, PATIENCE, LogScan
from submitrain.monitor.diagnose.tail import Tail, dump_positions, load_positions

OOM = "torch.OutOfMemoryError: CUDA out of memory."


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_second_look_reads_only_what_is_new(tmp_path: Path) -> None:
    path, scan = tmp_path / "a.log", LogScan("a.log")
    tail = Tail(path)
    _append(path, "step 1 loss 2.0\n" * 1000)
    tail.read(scan)
    _append(path, f"{OOM}\n")
    assert tail.read(scan) == len(OOM) + 1


def test_line_numbers_go_on_after_a_second_look(tmp_path: Path) -> None:
    path, scan = tmp_path / "a.log", LogScan("a.log")
    tail = Tail(path)
    _append(path, "x\n" * 10)
    tail.read(scan)
    _append(path, f"{OOM}\n")
    tail.read(scan)
    assert [one.line for one in scan.findings()] == [11]


def test_an_unfinished_line_waits_for_its_end(tmp_path: Path) -> None:
    path, scan = tmp_path / "a.log", LogScan("a.log")
    tail = Tail(path)
    _append(path, OOM[:20])
    tail.read(scan)
    _append(path, OOM[20:] + "\n")
    tail.read(scan)
    assert [one.text for one in scan.findings()] == [OOM]


def test_a_truncated_file_is_read_anew(tmp_path: Path) -> None:
    path, scan = tmp_path / "a.log", LogScan("a.log")
    tail = Tail(path)
    _append(path, "x\n" * 100)
    tail.read(scan)
    path.write_text(f"{OOM}\n")
    tail.read(scan)
    assert [one.line for one in scan.findings()] == [1]


def test_a_rotated_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    path, scan = tmp_path / "a.log", LogScan("a.log")
    tail = Tail(path)
    _append(path, "x\n" * 3)
    tail.read(scan)
    path.rename(tmp_path / "a.log.1")
    _append(path, f"first\n{OOM}\n" + "x\n" * 100)
    tail.read(scan)
    assert [one.line for one in scan.findings()] == [2]


def test_positions_survive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    _append(path, f"{OOM}\n")
    tail = Tail(path)
    tail.read(LogScan("a.log"))
    state = json.loads(json.dumps(dump_positions({str(path): tail})))
    scan = LogScan("a.log")
    assert (Tail(path, load_positions(state)[str(path)]).read(scan), scan.findings()) == (0, [])


def test_a_state_that_makes_no_sense_is_left_out() -> None:
    assert load_positions({"a": {"inode": 1}, "b": {"nonsense": 2}}) == {}


def test_a_missing_file_gives_nothing_now(tmp_path: Path) -> None:
    assert Tail(tmp_path / "none.log").read(LogScan("none.log")) == 0


def test_carriage_returns_end_lines(tmp_path: Path) -> None:
    path, scan = tmp_path / "a.log", LogScan("a.log")
    path.write_bytes(b"\r".join(b"%d%%|###   |" % number for number in range(99)) + b"\r")
    Tail(path).read(scan)
    _append(path, f"{OOM}\r")
    Tail(path).read(scan)
    assert [one.text for one in scan.findings()] == [OOM]


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_growing_in_pieces_finds_what_one_reading_finds(sizes: list[int]) -> None:
    text = f"step 1\r\nKeyError: 'a'\nx\r{OOM}\nstep 2\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.log"
        scan, tail, start = LogScan("a"), Tail(path), 0
        for size in [*sizes, len(text)]:
            _append(path, text[start : start + size])
            start += size
            tail.read(scan)
        places = [(one.kind, one.line, one.offset) for one in scan.findings()]
    assert places == [(one.kind, one.line, one.offset) for one in scan_text(text, name="a")]


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
