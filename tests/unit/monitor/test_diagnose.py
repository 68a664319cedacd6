"""Classes of failures: real logs of failures injected on this machine, and lines written here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.monitor.diagnose import FailureClass, diagnose_files, diagnose_text
from submitrain.monitor.diagnose.match import RuleIndex, anchor_of, meaning_of
from submitrain.monitor.diagnose.patterns import ADVICE, RULES
from submitrain.monitor.diagnose.scan import template_of
from tests.paths import TESTS

LOGS = sorted((TESTS / "data" / "logs").glob("*.log"))


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_log_gets_the_class_that_its_name_tells(path: Path) -> None:
    assert diagnose_files([path]).kind == path.name.partition("--")[0]


def test_every_class_has_a_log() -> None:
    assert {path.name.partition("--")[0] for path in LOGS} == set(FailureClass)


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_prefilter_hides_no_line_that_a_rule_means(path: Path) -> None:
    index = RuleIndex(RULES)
    for line in path.read_text(errors="replace").splitlines():
        meaning = meaning_of(line)
        words = template_of(line.encode()).split()
        positions = sorted(set().union(*(index.rules_of(word) for word in words)))
        assert meaning_of(line, positions) == meaning, line


def test_every_rule_has_an_id_of_its_own() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_there_is_advice_for_every_class() -> None:
    assert set(ADVICE) == set(FailureClass)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_literal_leads_to_its_rule(rule: object) -> None:
    index = RuleIndex(RULES)
    position = next(number for number, one in enumerate(RULES) if one is rule)
    for literal in RULES[position].literals:
        assert position in index.rules_of(anchor_of(literal).encode())


def test_literals_are_lower_case() -> None:
    assert [one for rule in RULES for one in rule.literals if one != one.lower()] == []


def test_a_message_glued_to_a_progress_bar_is_found() -> None:
    text = (
        " 40%|####      | 40/100 [00:40<01:00]\r"
        " 41%|####      | 41/100 [00:41<00:59][rank5]:[E918 03:00:01.5 Process.cpp:632] "
        "[Rank 5] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9, OpType=X)"
    )
    found = diagnose_text(text)
    assert (found.kind, found.rank, found.evidence[0].line) == ("nccl_timeout", 5, 1)


def test_terminal_colours_do_not_hide_a_message() -> None:
    text = "\x1b[31mModuleNotFoundError\x1b[0m: No module named 'x'"
    assert diagnose_text(text).kind == FailureClass.IMPORT_ERROR


@pytest.mark.parametrize("prefix", ["[rank3]: ", "3: ", "[rank3]:", "[Rank 3] "])
def test_prefix_names_the_rank(prefix: str) -> None:
    assert diagnose_text(f"{prefix}torch.OutOfMemoryError: CUDA out of memory.").rank == 3


def test_slurmstepd_names_the_node() -> None:
    text = "slurmstepd: error: *** STEP 8.0 ON node7 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT"
    assert diagnose_text(text).node == "node7"


def test_a_lost_node_is_to_be_excluded() -> None:
    found = diagnose_text("srun: error: Node failure on node7")
    assert (found.remedy.step, "--exclude=node7" in found.remedy.text) == ("exclude_node", True)


def test_training_that_went_on_is_benign() -> None:
    steps = "".join(f"step {step} loss 2.{step}\n" for step in range(5))
    assert diagnose_text(f"RuntimeError: CUDA error: out of memory\n{steps}").benign


def test_loss_that_stays_nan_is_no_survival() -> None:
    steps = "".join(f"step {step} loss nan\n" for step in range(9))
    assert diagnose_text(f"step 0 loss 1.5\n{steps}").kind == FailureClass.NAN_LOSS


def test_kill_without_a_word_is_only_probable() -> None:
    assert diagnose_text("srun: error: node1: task 3: Killed").confidence < 0.6


def test_oom_line_of_slurmstepd_is_nearly_certain() -> None:
    text = "slurmstepd: error: Detected 1 oom_kill event in StepId=8.0."
    assert diagnose_text(text).confidence > 0.9


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=400))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert 0 <= diagnose_text(text).confidence <= 1
