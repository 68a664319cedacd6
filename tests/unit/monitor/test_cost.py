"""Hours and money: every sum is the total, every price the right one, and no price is not free."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.attempts import attempts_of
from submitrain.errors import UserError
from submitrain.monitor.accounting.cli import as_csv, as_json, as_table
from submitrain.monitor.accounting.cost import (
    HOUR_US,
    Bill,
    By,
    Labels,
    RunUsage,
    charges_of,
    make_bill,
)
from submitrain.monitor.accounting.goodput import account
from submitrain.monitor.accounting.prices import (
    Holding,
    PriceTable,
    Unit,
    holdings_of,
    parse_prices,
    requested_type,
)
from submitrain.monitor.accounting.records import RunRecords, SacctJob, read_allocations
from submitrain.monitor.accounting.timeline import Category
from submitrain.monitor.cli import main
from submitrain.slurm.client import Answer
from tests.unit.monitor.test_goodput import (
    RANKS,
    SPANS,
    SUPERVISED,
    Event,
    began,
    event,
    killed_and_restarted,
    over,
)

ME = Labels("run-1", user="me", account="physics", partition="gpu", qos="normal")
TABLE = """
currency: EUR
prices:
  - {gpu: h100, from: 1970-01-01, until: 1970-02-01, per_gpu_hour: 2.10}
  - {gpu: h100, from: 1970-02-01, per_gpu_hour: 3.00}
  - {gpu: h100, partition: gpu, qos: low, per_gpu_hour: 0.50}
  - {per_core_hour: 0.01}
"""
PRICES = parse_prices(TABLE, "prices.yaml")
MONTH_S = 31 * 86400.0


@pytest.mark.parametrize(
    ("tres", "holdings"),
    [
        ("billing=8,cpu=64,gres/gpu=8,mem=1T,node=1", [Holding(Unit.GPU, 8)]),
        ("cpu=4,gres/gpu:a100=4,gres/gpu=4", [Holding(Unit.GPU, 4, "a100")]),
        (
            "gres/gpu:A100=4,gres/gpu:h100=2",
            [Holding(Unit.GPU, 4, "a100"), Holding(Unit.GPU, 2, "h100")],
        ),
        ("gres/gpu=8,gres/gpu:a100=4,gres/gpu:h100=2", [Holding(Unit.GPU, 8)]),
        ("gres/gpu=8,gres/gpu:a100=4", [Holding(Unit.GPU, 8, "a100")]),
        ("cpu=16,mem=200M,node=2", [Holding(Unit.CORE, 16)]),
        ("gres/gpu=0,cpu=2", [Holding(Unit.CORE, 2)]),
        ("", []),
        ("mem=4G,rubbish,cpu=x", []),
    ],
)  # fmt: skip
def test_gpus_are_counted_once(tres: str, holdings: list[Holding]) -> None:
    assert list(holdings_of(tres)) == holdings


@pytest.mark.parametrize(
    ("sbatch", "name"),
    [
        ({"gpus_per_node": "H100:8"}, "h100"),
        ({"gpus_per_node": 8}, ""),
        ({"gres": "gpu:a100:4"}, "a100"),
        ({"gres": "gpu:4"}, ""),
        ({}, ""),
    ],
)
def test_the_requested_type(sbatch: dict[str, Any], name: str) -> None:
    assert requested_type(sbatch) == name


@pytest.mark.parametrize(
    ("holding", "partition", "qos", "at_s", "price"),
    [
        (Holding(Unit.GPU, 1, "h100"), "gpu", "normal", 0, "2.10"),
        (Holding(Unit.GPU, 1, "h100"), "gpu", "normal", MONTH_S - 1, "2.10"),
        (Holding(Unit.GPU, 1, "h100"), "gpu", "normal", MONTH_S, "3.00"),
        (Holding(Unit.GPU, 1, "h100"), "GPU", "low", MONTH_S, "0.50"),
        (Holding(Unit.GPU, 1, "h100"), "other", "low", MONTH_S, "3.00"),
        (Holding(Unit.GPU, 1, "a100"), "gpu", "normal", 0, None),
        (Holding(Unit.GPU, 1), "gpu", "low", 0, None),
        (Holding(Unit.CORE, 1), "any", "", 0, "0.01"),
        (Holding(Unit.RANK, 1), "any", "", 0, None),
    ],
)
def test_the_price_of_a_place_and_a_day(
    holding: Holding, partition: str, qos: str, at_s: float, price: str | None
) -> None:
    found = PRICES.per_hour(holding, partition=partition, qos=qos, at_us=round(at_s * 1e6))
    assert found == (None if price is None else Decimal(price))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prices: 3", "expected a mapping with a list of prices"),
        ("prices: []\ncost: 3", "cost: unknown key"),
        ("prices: [{gpus: a, per_gpu_hour: 1}]", "gpus: unknown key"),
        ("prices: [{gpu: a}]", "expected one of per_gpu_hour"),
        ("prices: [{gpu: a, per_gpu_hour: 1, per_core_hour: 1}]", "got 2"),
        ("prices: [{per_gpu_hour: -1}]", "amount >= 0"),
        ("prices: [{per_gpu_hour: NaN}]", "amount >= 0"),
        ("prices: [{per_gpu_hour: a}]", "amount >= 0"),
        ("prices: [{per_gpu_hour: 1, from: 2026-13-01}]", "expected a day"),
        ("prices: [{per_gpu_hour: 1, from: 2026-02-01, until: 2026-02-01}]", "a day after from"),
        ("prices: [{per_gpu_hour: 1}, {per_gpu_hour: 2, from: 2026-01-01}]", "overlapping days"),
        ("prices: [", "expected YAML"),
        ("prices: [3]", "expected a mapping, got '3'"),
    ],
)
def test_a_wrong_price_table_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_prices(text, "prices.yaml")


def job(started_s: float, ended_s: float | None, *, tres: str = "gres/gpu:h100=4") -> SacctJob:
    ended_us = None if ended_s is None else round(ended_s * 1e6)
    return SacctJob("7", round(started_s * 1e6), ended_us, tres)


def facts(records: RunRecords, *jobs: SacctJob) -> RunUsage:
    return RunUsage(ME, replace(records, jobs=jobs))


def bill(run: RunUsage, by: By = By.RUN, prices: PriceTable = PRICES, **window: int) -> Bill:
    return make_bill(charges_of(run), prices, by, **window)


def test_hours_are_gpus_times_the_time_of_the_allocation() -> None:
    found = bill(facts(killed_and_restarted(), job(8.0, 33.0)))
    (row,) = found.rows
    assert (row.group, row.unit) == ("run-1", Unit.GPU)
    assert row.used_us == 4 * 25_000_000
    assert (row.attempts, row.allocations, row.requeues) == (2, 1, 0)
    assert row.split_us[Category.PRODUCTIVE] > 0
    # 4 GPUs x 25 s x 2.10 / 3600 s
    assert row.money == Decimal("0.06")


def test_what_was_wasted_is_told_by_cause() -> None:
    (row,) = bill(facts(killed_and_restarted("hung"), job(8.0, 33.0))).rows
    lost = row.split_us[Category.RECOMPUTED] + row.split_us[Category.STALLED]
    # In addition: the pause after it, and the start and restore of the next attempt.
    assert set(row.wasted_us) == {"hung"}
    assert row.wasted_us["hung"] == lost + 4 * (1_000_000 + 2_500_000)


def test_every_requeue_and_attempt_is_counted_also_of_a_job_that_did_nothing() -> None:
    lines = (
        began(1, 10.0),
        over(1, 20.0, "preempted"),
        began(2, 110.0, restart_count=2),
        over(2, 120.0, "finished"),
    )
    records = RunRecords(attempts=attempts_of(lines), now=200.0)
    jobs = (job(9.0, 21.0), job(50.0, 60.0), job(109.0, 121.0))
    (row,) = bill(facts(records, *jobs)).rows
    assert row.used_us == 4 * (12 + 10 + 12) * 1_000_000
    assert (row.attempts, row.allocations, row.requeues) == (2, 3, 2)
    assert row.split_us[Category.UNEXPLAINED] >= 4 * 10_000_000


def test_the_accountings_whole_seconds_are_what_is_charged() -> None:
    lines = (began(1, 9.9, job_started_at=9.4), over(1, 20.7, "finished"))
    records = RunRecords(attempts=attempts_of(lines), now=99.0)
    (row,) = bill(facts(records, job(10.0, 20.0))).rows
    assert row.used_us == 4 * 10_000_000


def test_without_accounting_ranks_are_counted() -> None:
    records = killed_and_restarted()
    (row,) = bill(RunUsage(ME, records)).rows
    assert row.unit is Unit.RANK
    assert row.used_us == account(records).allocated_rank_us
    assert row.split_us == account(records).rank_us


def test_ranks_are_gpus_where_the_site_does_not_account_for_them() -> None:
    setup = event("setup", 1, 11.0, backend="nccl")
    records = replace(killed_and_restarted(), events=(setup, *killed_and_restarted().events))
    cores = job(8.0, 33.0, tres="cpu=64")
    (row,) = bill(replace(facts(records, cores), gpu_type="h100")).rows
    assert (row.unit, row.used_us, row.unpriced_us) == (Unit.GPU, 2 * 25_000_000, 0)


def test_a_price_that_changes_within_an_allocation_counts_from_its_day() -> None:
    records = RunRecords(now=2 * MONTH_S)
    (row,) = bill(facts(records, job(MONTH_S - 3600, MONTH_S + 3600, tres="gres/gpu:h100=1"))).rows
    assert row.money == Decimal("5.10")


def test_months_are_cut_at_midnight_utc() -> None:
    records = RunRecords(now=2 * MONTH_S)
    found = bill(
        facts(records, job(MONTH_S - 1800, MONTH_S + 3600, tres="gres/gpu:h100=2")), By.MONTH
    )
    assert [(row.group, row.used_us) for row in found.rows] == [
        ("1970-01", HOUR_US),
        ("1970-02", 2 * HOUR_US),
    ]
    assert [row.allocations for row in found.rows] == [1, 0]


def test_a_window_counts_what_is_inside() -> None:
    records = RunRecords(now=2 * MONTH_S)
    run = facts(records, job(MONTH_S - 3600, MONTH_S + 7200, tres="gres/gpu:h100=1"))
    (row,) = bill(run, since_us=round(MONTH_S * 1e6), until_us=round(MONTH_S * 1e6) + HOUR_US).rows
    assert row.used_us == HOUR_US


def test_no_price_is_said_and_is_not_zero() -> None:
    run = facts(killed_and_restarted(), job(8.0, 33.0))
    nothing = bill(run, prices=PriceTable())
    assert nothing.rows[0].money is None
    assert "unpriced" in as_table(nothing).splitlines()[1]
    assert next(csv.DictReader(StringIO(as_csv(nothing))))["cost"] == "unpriced"
    assert json.loads(as_json(nothing))["groups"][0]["cost"] is None
    records = RunRecords(now=2 * MONTH_S)
    late = parse_prices("prices: [{from: 1970-02-01, per_gpu_hour: 1}]", "p")
    part = bill(
        facts(records, job(MONTH_S - 3600, MONTH_S + 3600, tres="gres/gpu:h100=1")), prices=late
    )
    assert "1.00 + 1.00 h unpriced" in as_table(part)


def test_free_is_a_price() -> None:
    free = parse_prices("prices: [{per_gpu_hour: 0}]", "p")
    assert bill(facts(killed_and_restarted(), job(8.0, 33.0)), prices=free).rows[0].money == 0


def test_several_gpu_types_in_one_job_are_charged_each() -> None:
    one = job(0.0, 3600.0, tres="gres/gpu:h100=1,gres/gpu:a100=3")
    (row,) = bill(facts(RunRecords(now=9000.0), one)).rows
    assert (row.used_us, row.unpriced_us) == (4 * HOUR_US, 3 * HOUR_US)
    assert row.money == Decimal("2.10")
    assert row.allocations == 1


@settings(max_examples=200, deadline=None)
@given(SUPERVISED, RANKS, SPANS, st.booleans(), st.sampled_from(By), st.integers(0, 5))
def test_groups_and_categories_sum_up_to_the_total(
    attempts: list[Event],
    events: list[Event],
    spans: list[SacctJob],
    ended: bool,
    by: By,
    gpus: int,
) -> None:
    tres = f"gres/gpu:h100={gpus}"
    jobs = tuple(
        replace(span, tres=tres, user=f"user{place % 2}") for place, span in enumerate(spans)
    )
    records = RunRecords(attempts_of(attempts), tuple(events), (), jobs, 6000.0, ended)
    run = RunUsage(ME, records)
    prices = parse_prices("prices: [{gpu: h100, per_gpu_hour: 1.37}]", "p")
    charges = charges_of(run)
    found = make_bill(charges, prices, by)
    whole = sum(one.holding.count * (one.ended_us - one.started_us) for one in charges)
    assert sum(row.used_us for row in found.rows) == whole
    assert sum(row.used_us for row in found.totals) == whole
    for total in found.totals:
        rows = [row for row in found.rows if row.unit is total.unit]
        assert sum(row.price_us for row in rows) == total.price_us
        assert sum(row.unpriced_us for row in rows) == total.unpriced_us
        assert sum(sum(row.wasted_us.values()) for row in rows) <= total.used_us
        assert total.price_us == Decimal("1.37") * (total.used_us - total.unpriced_us)
    started = {line["attempt"] for line in attempts if line["kind"] == "attempt_start"}
    assert sum(row.attempts for row in found.rows) == len(started)
    if not jobs:
        assert whole == account(records).allocated_rank_us


ROW = "7\x1f1970-01-01T00:00:10\x1fUnknown\x1fcpu=2,gres/gpu=4\x1fme\x1facc\x1fq\x1fp\x1f*chem"


def test_sacct_is_asked_once_for_all_jobs() -> None:
    asked: list[list[str]] = []

    def run(command: Any, **_: Any) -> Answer:
        asked.append(list(command))
        return Answer(0, f"{ROW}\n", "")

    jobs, problem = read_allocations([str(number) for number in range(900)], run=run)
    assert (len(asked), problem) == (1, "")
    assert "--duplicates" in asked[0]
    assert jobs[0].ended_us is None
    assert holdings_of(jobs[0].tres) == (Holding(Unit.GPU, 4),)
    assert Labels("run-1").of_job(jobs[0]) == Labels("run-1", "me", "acc", "chem", "p", "q")


def test_accounting_that_is_off_is_said() -> None:
    jobs, problem = read_allocations(["7"], run=lambda *_, **__: Answer(1, "", "disabled"))
    assert (jobs, problem) == ([], "disabled")


def test_a_job_that_never_ran_held_nothing() -> None:
    line = "7\x1fNone\x1f2026-01-01T00:00:00\n"
    assert read_allocations(["7"], run=lambda *_, **__: Answer(0, line, "")) == ([], "")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """A local run of which all is known."""
    folder = tmp_path / "runs" / "toy-20260101T000000-12345678"
    (folder / "events").mkdir(parents=True)
    record = {"cluster": "local", "who": {"user": "me"}}
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "summary.json").write_text(json.dumps({"state": "finished", "cause": "finished"}))
    (folder / "config.yaml").write_text("wandb: {project: moon}\n")
    lines = [began(1, 0.0), over(1, 7200.0, "finished")]
    (folder / "attempts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder.parent


@pytest.mark.parametrize(
    ("by", "group"),
    [("user", "me"), ("project", "moon"), ("partition", "local"), ("account", "(none)")],
)
def test_the_command_prints_each_grouping(
    runs_dir: Path, capsys: pytest.CaptureFixture[str], by: str, group: str
) -> None:
    prices = runs_dir / "p.yaml"
    prices.write_text("currency: EUR\nprices: [{per_rank_hour: 1.5}]")
    command = ["cost", "--all", "--runs-dir", str(runs_dir), "--by", by, "--prices", str(prices)]
    assert main([*command, "--format", "csv"]) == 0
    (line,) = csv.DictReader(StringIO(capsys.readouterr().out))
    assert (line[by], line["hours"], line["cost"]) == (group, "4.000000", "6.00")
    assert main(command) == 0
    assert "6.00 EUR" in capsys.readouterr().out


def test_wrong_input_is_one_line(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = ["cost", "--all", "--runs-dir", str(runs_dir)]
    assert main(["cost"]) == 2
    assert main([*everything, "--since", "yesterday"]) == 2
    assert main([*everything, "--since", "2026-02-01", "--until", "2026-01-01"]) == 2
    assert main([*everything, "--prices", "nowhere.yaml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4
