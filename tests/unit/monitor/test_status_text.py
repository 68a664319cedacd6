"""What ``monitor status`` and ``launcher status`` say; they are one implementation."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from submitrain.events import read_tail
from submitrain.launcher.cli.main import main as launcher
from submitrain.monitor.alerts.loss_spike import MAD_TO_SIGMA, UsualLosses
from submitrain.monitor.cli import main as monitor
from submitrain.monitor.status import (
    cpu_seconds,
    efficiency_of,
    efficiency_rows,
    read_efficiency,
    size_bytes,
    status_rows,
)
from submitrain.run_facts import read_evidence
from submitrain.slurm.client import Answer
from submitrain.slurm.jobs import explain_reason, reason_text
from submitrain.status import JobState, JobView, poll_runs, status_of
from tests.alert_parts import FakeRun
from tests.fleet_parts import living, process, run_named


def test_both_commands_say_the_same_of_one_run_and_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_named(tmp_path, "llama")
    run.begin()
    run.steps(1, 5, lr=1e-4)
    run.end("finished", "finish")
    run.finish()
    where = ["--runs-dir", str(tmp_path)]
    shown = []
    for command in (
        [launcher, "list"],
        [monitor, "status", "--all"],
        [launcher, "status", "latest"],
        [monitor, "status", "latest"],
    ):
        main, *arguments = command
        assert main([*arguments, "--json", *where]) == 0  # type: ignore[operator]
        shown.append(json.loads(capsys.readouterr().out))
        assert main([*arguments, *where]) == 0  # type: ignore[operator]
        assert "5/100" in (text := capsys.readouterr().out) or "5 of 100" in text
    assert shown[0] == shown[1]
    assert shown[2] == shown[3]
    assert shown[2]["state"] == "finished"
    assert shown[2]["goodput"]["attempts"] == 1


def test_a_living_run_is_told_with_nodes_memory_checkpoint_and_restarts(tmp_path: Path) -> None:
    with process() as pid:
        run = living(tmp_path, "llama", pid)
    rows = dict(status_rows(status_of(read_evidence(run.dir.root), JobView(JobState.RUNNING))))
    assert rows["nodes"] == "n1, n2"
    assert rows["attempt"] == "2; before it: 1 x hung"
    assert rows["memory"] == "70 GB at most, rank 0"
    assert re.match(r"step 20 of 1 kept, \d+ s ago", rows["newest checkpoint"])
    assert rows["newest checkpoint"].endswith("ago, 1 MB, saved in 2.5 s")


def test_a_wait_is_told_in_plain_words_with_what_to_do(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    rows = dict(status_rows(status_of(read_evidence(run.dir.root), pending("JobHeldUser"))))
    assert rows["state"] == "queued: JobHeldUser: its owner holds it"
    assert rows["next step"] == "scontrol release JOB"


def pending(reason: str) -> JobView:
    return JobView(JobState.PENDING, reason)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "Priority: other jobs go first"),
        ("(Resources)", "Resources: it is next, and nodes are not free yet"),
        (
            "ReqNodeNotAvail, Unavailable:n3",
            "ReqNodeNotAvail: nodes it needs are down, drained or reserved (Unavailable:n3)",
        ),
        ("QOSMaxGRESPerUser", "QOSMaxGRESPerUser: a limit of its account or QOS is used up"),
        ("SomethingNew", "SomethingNew"),
        ("", ""),
    ],
)
def test_reasons_become_words_once(reason: str, words: str) -> None:
    assert reason_text(reason) == words
    assert reason_text(words) == words
    assert explain_reason(words) == explain_reason(reason)


def test_a_loss_that_is_not_a_number_is_shown_and_is_json(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.begin()
    run.steps(1, 1, loss="nan")
    found = status_of(read_evidence(run.dir.root), JobView(JobState.RUNNING))
    assert found.loss is not None
    assert math.isnan(found.loss)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["loss"] == "nan"
    assert dict(status_rows(found))["loss"] == "nan"


def test_rubbish_between_events_costs_nothing_but_itself(tmp_path: Path) -> None:
    path = tmp_path / "rank00000.jsonl"
    good = [f'{{"kind":"step","step":{step}}}\n' for step in range(5)]
    for rubbish in ("", "\n", "{torn\n", "1,2\n", "[]\n", '{"kind":1}\n', "\x00\n", '{"kind":"x"}'):
        path.write_text("".join(good[:3]) + rubbish + ("\n" if rubbish else ""))
        kinds = [event["kind"] for event in read_tail(path)]
        assert kinds[:3] == ["step"] * 3
        assert len(kinds) == (4 if "x" in rubbish and rubbish.startswith("{") else 3)


ROWS = [
    ("41", "COMPLETED", "100", "4", "05:00.500", "", "", "billing=4,cpu=4,mem=8G,node=1"),
    ("41.batch", "COMPLETED", "100", "4", "00:00.500", "100M", "1", "cpu=4,mem=8G,node=1"),
    ("41.0", "COMPLETED", "90", "4", "05:00.000", "1G", "4", "cpu=4,mem=8G,node=1"),
]
NAMES = ("JobIDRaw", "State", "ElapsedRaw", "NCPUS", "TotalCPU", "MaxRSS", "NTasks", "AllocTRES")


def test_efficiency_is_used_over_held_and_says_that_it_is_an_estimate() -> None:
    found = efficiency_of([dict(zip(NAMES, row, strict=True)) for row in ROWS])
    assert found.cpu == pytest.approx(300.5 / 400)
    assert (found.memory, found.mem_bytes) == (0.5, 4 * 2**30)
    assert efficiency_rows(found) == [
        ("CPU used", "about 75% (estimate)"),
        ("memory used", "about 50% (4.29 GB) (estimate)"),
    ]


def test_efficiency_is_unknown_where_nobody_accounts() -> None:
    def refuses(command: object, *, timeout_s: float = 0.0) -> Answer:
        return Answer(1, "", "Slurm accounting storage is disabled")

    found = read_efficiency(["41"], run=refuses)
    assert (found.cpu, found.memory) == (None, None)
    assert efficiency_rows(found) == [
        ("efficiency", "unknown: Slurm accounting storage is disabled")
    ]


def test_times_and_sizes_of_sacct() -> None:
    assert cpu_seconds("1-02:03:04") == 93784
    assert (cpu_seconds("01:02.5"), cpu_seconds("")) == (62.5, 0)
    assert [size_bytes(text) for text in ("", "12", "1.5K", "2G", "x")] == [0, 12, 1536, 2**31, 0]


@given(some.integers(20, 200), some.integers(0, 2**32), some.sampled_from([0.5, 3.0, 6.0]))
def test_the_quick_answer_about_a_spike_is_the_exact_one(count: int, seed: int, z: float) -> None:
    chance = random.Random(seed)
    losses = [round(2.0 + chance.gauss(0.0, 0.05), chance.choice([1, 6])) for _ in range(count)]
    usual = UsualLosses()
    for value in losses:
        usual.add(value)
    window = losses[-128:]
    median = statistics.median(window)
    spread = MAD_TO_SIGMA * statistics.median(abs(one - median) for one in window)
    for value in [*losses, 2.05, 2.2, 2.5, 9.0]:
        exact = (value - median) / max(spread, 1e-3 * abs(median), 1e-12)
        assert usual.z_above(value, z) == (exact if exact > z else None)


def test_runs_are_read_one_after_the_other(tmp_path: Path) -> None:
    folders = []
    for number in range(3):
        run = run_named(tmp_path, f"r{number}")
        run.finish()
        folders.append(run.dir.root)
    found = poll_runs(folders)
    first = next(found)
    # What is written later is seen later: nothing of the newest run has been read yet.
    run.begin()
    run.steps(1, 3)
    rest = [observation.status.step for observation in found]
    assert (first.status.step, rest) == (0, [0, 3])
