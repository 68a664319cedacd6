"""The audit trail: whatever is done to a ledger later, the first broken line is named."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.events import Kind
from submitrain.launcher.submit.audit_events import facts_of, submission_facts
from submitrain.monitor.audit.chain import (
    Act,
    Anchor,
    Damage,
    LedgerCheck,
    check,
    genesis,
    make_entry,
    seal,
)
from submitrain.monitor.audit.ledger import AuditLedger, Trail, read_anchors, read_trail
from submitrain.monitor.audit.transcribe import new_publications, transcribe
from submitrain.monitor.cli import main
from submitrain.run_folder import RunDir, write_json_atomically
from tests.supervised import counting_run

NAME = "ledger.jsonl"


def chain(count: int) -> tuple[list[bytes], Anchor]:
    """Lines of a valid ledger, and the anchor of its end."""
    lines, head = [], genesis(NAME)
    for seq in range(1, count + 1):
        entry = {"v": 1, "t": seq + 0.5, "act": "launch", "outcome": 'é "\n', "attempt": None}
        line, head = seal(entry, seq, head)
        lines.append(line)
    return lines, Anchor(count, head)


def judged(lines: list[bytes], anchor: Anchor) -> LedgerCheck:
    return check(NAME, b"".join(lines), [anchor])


def resealed(lines: list[bytes], at: int) -> list[bytes]:
    """A forger changes line ``at`` and makes the whole rest of the chain valid again."""
    result, head = [], genesis(NAME)
    for number, line in enumerate(lines, start=1):
        entry = {k: v for k, v in json.loads(line).items() if k not in ("seq", "prev", "hash")}
        if number == at:
            entry["act"] = "cancel"
        new, head = seal(entry, number, head)
        result.append(new)
    return result


def test_an_untouched_ledger_is_intact() -> None:
    lines, anchor = chain(5)
    verdict = judged(lines, anchor)
    assert verdict.broken is None
    assert not verdict.torn
    assert verdict.head == anchor
    assert [entry["seq"] for entry in verdict.entries] == [1, 2, 3, 4, 5]


LINES, ANCHOR = chain(5)


@pytest.mark.parametrize(
    ("lines", "line", "damage"),
    [
        (
            [*LINES[:2], LINES[2].replace(b"launch", b"cancel"), *LINES[3:]],
            3,
            Damage.CHANGED,
        ),
        ([LINES[0].replace(b"{", b"{ ", 1), *LINES[1:]], 1, Damage.CHANGED),
        ([*LINES[:2], *LINES[3:]], 3, Damage.REMOVED),
        (LINES[1:], 1, Damage.REMOVED),
        (LINES[:4], 5, Damage.REMOVED),
        ([], 1, Damage.REMOVED),
        ([*LINES[:1], LINES[2], LINES[1], *LINES[3:]], 2, Damage.REORDERED),
        ([*LINES[:2], LINES[0], *LINES[2:]], 3, Damage.INSERTED),
        ([*LINES[:2], b"{}\n", *LINES[2:]], 3, Damage.INSERTED),
        ([*LINES, b"rubbish"], 6, Damage.INSERTED),
        (resealed(LINES, 2), 5, Damage.REWRITTEN),
        ([*LINES[:1], resealed(LINES, 2)[1], *LINES[2:]], 3, Damage.REWRITTEN),
        ([*LINES[:4], LINES[4].rstrip()], 5, Damage.CHANGED),
    ],
)
def test_the_first_broken_line_is_named(lines: list[bytes], line: int, damage: Damage) -> None:
    broken = judged(lines, ANCHOR).broken
    assert broken is not None
    assert (broken.line, broken.damage) == (line, damage)


@given(cut=st.integers(1, len(LINES[4]) - 1))
def test_a_line_whose_writer_was_killed_is_torn_and_no_tampering(cut: int) -> None:
    before = Anchor(4, json.loads(LINES[3])["hash"])
    verdict = check(NAME, b"".join(LINES[:4]) + LINES[4][:cut], [before])
    assert verdict.broken is None
    assert verdict.torn
    assert verdict.head == before


@given(data=st.data())
@settings(max_examples=400)
def test_any_changed_byte_is_found(data: st.DataObject) -> None:
    whole = bytearray(b"".join(LINES))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    broken = check(NAME, bytes(whole), [ANCHOR]).broken
    assert broken is not None
    assert broken.line == bytes(b"".join(LINES))[:place].count(b"\n") + 1


@given(count=st.integers(1, 8), data=st.data())
def test_any_deleted_line_is_found(count: int, data: st.DataObject) -> None:
    lines, anchor = chain(count)
    place = data.draw(st.integers(0, count - 1))
    broken = judged([*lines[:place], *lines[place + 1 :]], anchor).broken
    assert broken is not None
    assert (broken.line, broken.damage) == (place + 1, Damage.REMOVED)


@given(order=st.permutations(range(6)))
def test_any_other_order_is_found(order: list[int]) -> None:
    lines, anchor = chain(6)
    broken = judged([lines[place] for place in order], anchor).broken
    moved = [number for number, place in enumerate(order, start=1) if place != number - 1]
    if not moved:
        assert broken is None
        return
    assert broken is not None
    assert (broken.line, broken.damage) == (moved[0], Damage.REORDERED)


@given(rubbish=st.binary())
def test_whatever_a_file_holds_is_judged(rubbish: bytes) -> None:
    verdict = check(NAME, rubbish)
    assert verdict.entries == ()
    assert verdict.torn or verdict.broken or not rubbish


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A run folder with a record."""
    folder = tmp_path / "runs" / "toy-20260101T000000-12345678"
    folder.mkdir(parents=True)
    run_dir = RunDir(folder)
    write_json_atomically(run_dir.record, {"cluster": "local", "who": {"user": "me"}})
    return run_dir


def test_two_writers_have_a_ledger_each_and_know_of_each_other(run_dir: RunDir) -> None:
    client, supervisor = AuditLedger(run_dir, "cli"), AuditLedger(run_dir, "supervisor")
    assert client.note(Act.LAUNCH, job_id="7")
    assert supervisor.note(Act.REQUEUE, job_id="7", attempt=1, outcome="asked")
    assert client.note(Act.CANCEL, job_id="7")
    trail = read_trail(run_dir)
    assert len(trail.ledgers) == 2
    assert not trail.broken
    assert [entry["act"] for entry in trail.entries] == ["launch", "requeue", "cancel"]
    assert {entry["who"]["via"] for entry in trail.entries} == {"cli", "supervisor"}
    assert read_anchors(run_dir) == {n: one.head for n, one in trail.ledgers.items()}
    assert json.loads(run_dir.record.read_text())["who"] == {"user": "me"}


def test_a_ledger_that_is_gone_is_missed_without_the_record(run_dir: RunDir) -> None:
    client, supervisor = AuditLedger(run_dir, "cli"), AuditLedger(run_dir, "supervisor")
    client.note(Act.LAUNCH)
    supervisor.note(Act.REQUEUE)
    assert client.path is not None
    write_json_atomically(run_dir.record, {"cluster": "local"})
    assert not read_trail(run_dir).broken
    client.path.unlink()
    (found,) = read_trail(run_dir).broken
    assert found[0] == client.path.name
    assert found[1].damage is Damage.REMOVED


def _notes(folder: str, count: int) -> None:
    ledger = AuditLedger(RunDir(Path(folder)), "cli")
    for number in range(count):
        assert ledger.note(Act.CHECKPOINT, facts={"step": number})


def test_writers_at_once_do_not_harm_each_other(run_dir: RunDir) -> None:
    context = multiprocessing.get_context("spawn")
    folder = str(run_dir.root)
    writers = [context.Process(target=_notes, args=(folder, 20)) for _ in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    trail = read_trail(run_dir)
    assert [len(one.entries) for one in trail.ledgers.values()] == [20, 20, 20]
    assert not trail.broken
    assert [one.anchored for one in trail.ledgers.values()] == [20, 20, 20]


def test_an_act_that_cannot_be_written_is_loud_and_leaves_the_ledger_whole(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = AuditLedger(run_dir, "supervisor")
    ledger.note(Act.LAUNCH)
    assert ledger.path is not None
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # A full disk: the kernel takes only the first bytes of the line.
        resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.path.stat().st_size + 40, limits[1]))
        assert not ledger.note(Act.REQUEUE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "audit_not_written" in capsys.readouterr().out
    assert ledger.note(Act.RESUBMIT)
    trail = read_trail(run_dir)
    assert not trail.broken
    assert not any(one.torn for one in trail.ledgers.values())
    assert [entry["act"] for entry in trail.entries] == ["launch", "resubmit"]


def test_what_is_no_json_stops_nobody(run_dir: RunDir) -> None:
    ledger = AuditLedger(run_dir, "supervisor")
    assert not ledger.note(Act.LAUNCH, facts={"x": float("nan")})
    assert not ledger.note(Act.LAUNCH, facts={"x": object()})
    assert ledger.note(Act.LAUNCH)
    assert len(read_trail(run_dir).entries) == 1


def published(attempt: int, step: int, kind: str = "checkpoint") -> bytes:
    event = {"kind": kind, "attempt": attempt, "step": step, "t": step * 1.5, "job_id": "7"}
    return json.dumps({**event, "path": "checkpoints/x"}, separators=(",", ":")).encode() + b"\n"


def test_publications_are_transcribed_once(run_dir: RunDir) -> None:
    events = run_dir.events(0)
    events.parent.mkdir()
    events.write_bytes(published(1, 5) + published(1, 6, "step") + published(2, 5) + b'{"kind":"ch')
    assert transcribe(run_dir, AuditLedger(run_dir, "supervisor")) == 2
    events.write_bytes(events.read_bytes().rpartition(b"\n")[0] + b"\n" + published(2, 9))
    assert transcribe(run_dir, AuditLedger(run_dir, "supervisor")) == 1
    acts = [
        (one["act"], one["attempt"], one["facts"]["step"]) for one in read_trail(run_dir).entries
    ]
    assert acts == [("checkpoint", 1, 5), ("checkpoint", 2, 5), ("checkpoint", 2, 9)]


def test_other_events_are_no_publications() -> None:
    assert (
        new_publications([published(1, 5, "resume"), b"\x00\n", b'"kind":"checkpoint"\n'], ()) == []
    )


def test_facts_of_a_submission_hold_no_secret(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    run_dir.config.write_text(
        "seed: 3\nmodel: {pretrained_model_name_or_path: a/b, revision: main}\n"
        "dataset: {dataset_name: 'https://hf_verysecretvalue@host/data'}\n"
        "slurm: {hf_token: '${HF_TOKEN}', container_image: 'img@sha256:abc'}\n"
    )
    facts = submission_facts(run_dir)
    assert facts["dataset"] == "https://[redacted]@host/data"
    assert facts["image_digest"] == "sha256:abc"
    assert (facts["seed"], facts["base_model"], facts["base_model_revision"]) == (3, "a/b", "main")
    assert len(facts["config_sha256"]) == 64
    assert "verysecret" not in json.dumps(facts)


def test_facts_that_are_not_known_are_none() -> None:
    assert set(facts_of({}, {}, {}).values()) == {None}


def test_entries_say_who_did_it() -> None:
    entry: dict[str, Any] = make_entry(Act.ALERT, via="monitor")
    assert entry["who"]["uid"] == os.getuid()
    assert entry["who"]["pid"] == os.getpid()


def audit(*arguments: str) -> int:
    return main(["audit", *arguments])


def test_the_command_shows_verifies_and_exports(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    AuditLedger(run_dir, "cli").note(Act.LAUNCH, job_id="7", facts={"account": "physics"})
    run = str(run_dir.root)
    assert audit("show", run) == 0
    assert "launch" in capsys.readouterr().out
    target = tmp_path / "trail.csv"
    assert audit("export", run, "--format", "csv", "--output", str(target)) == 0
    assert [line.split(",")[2] for line in target.read_text().splitlines()] == [
        "act",
        "launch",
        "export",
    ]
    assert audit("verify", run) == 0
    head = capsys.readouterr().out.split("head ")[1].strip()
    assert audit("verify", run, "--head", head) == 0
    AuditLedger(run_dir, "cli").note(Act.CANCEL)
    assert audit("verify", run, "--head", head) == 1
    assert audit("verify") == 2


@pytest.mark.ranks
def test_a_real_run_leaves_a_trail_that_shows_a_flipped_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"steps": 10, "step_s": 0.02, "save_every": 5}
    with counting_run(tmp_path / "run", plan=plan) as run:
        write_json_atomically(run.run_dir.record, {"cluster": "local"})
        assert run.wait() == 0, run.log
    trail: Trail = read_trail(run.run_dir)
    saved = [entry["facts"]["step"] for entry in trail.entries if entry["act"] == "checkpoint"]
    assert saved == [event["step"] for event in run.events(Kind.CHECKPOINT)]
    assert set(saved) == {5, 10}
    assert audit("verify", str(run.run_dir.root)) == 0
    (path,) = run.run_dir.audit.glob("*.jsonl")
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 30] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert audit("verify", str(run.run_dir.root)) == 1
    assert f"{path.name}:2: changed" in capsys.readouterr().out
