"""The life of alerts, by example and by property: told once, muted, reminded, resolved."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.config.alerts import AlertsConfig
from submitrain.monitor.alerts.rules import MUTED_BY, Finding, Rule, RuleResults, Severity
from submitrain.monitor.alerts.state import (
    Notice,
    RunAlerts,
    Timing,
    Transition,
    advance,
    routes,
    seal,
)
from submitrain.monitor.watch.observe import Samples

TIMING = Timing(remind_s=1000.0, resolve_after_s=60.0)
HANG = Finding(Rule.HANG, "run", Severity.CRITICAL, "no progress", "look")
SLOW = Finding(Rule.THROUGHPUT, "run", Severity.WARNING, "slow", "look")
FAILED = Finding(Rule.FAILED, "run", Severity.CRITICAL, "died", "look")
DONE = Finding(Rule.FINISHED, "run", Severity.INFO, "finished")
ALL = [
    HANG,
    SLOW,
    FAILED,
    DONE,
    replace(SLOW, rule=Rule.STRAGGLER, subject="rank 1", for_s=90.0),
    replace(SLOW, rule=Rule.STRAGGLER, subject="rank 2"),
    replace(HANG, rule=Rule.DISK, subject="space"),
    replace(SLOW, rule=Rule.CHECKPOINT, subject="overdue"),
]


def told(state: RunAlerts) -> list[tuple[Transition, Rule]]:
    return [(entry.event, entry.rule) for entry in state.waiting]


def after(state: RunAlerts, *looks: tuple[float, list[Finding]]) -> RunAlerts:
    for now, findings in looks:
        state = advance(state, RuleResults(tuple(findings)), now, TIMING)
    return state


def test_a_trouble_is_told_once_however_long_it_lasts() -> None:
    state = after(RunAlerts("r"), *((float(t), [SLOW]) for t in range(0, 5000, 30)))
    assert told(state) == [(Transition.FIRING, Rule.THROUGHPUT)]


def test_a_critical_trouble_is_brought_back_to_mind() -> None:
    state = after(RunAlerts("r"), *((float(t), [HANG]) for t in range(0, 2500, 30)))
    reminders = [entry.t for entry in state.waiting if entry.event is Transition.REMINDER]
    assert len(reminders) == 2
    assert reminders[1] - reminders[0] >= TIMING.remind_s


def test_an_end_is_told_after_it_has_lasted() -> None:
    state = after(RunAlerts("r"), (0, [HANG]), (30, []), (60, []))
    assert told(state) == [(Transition.FIRING, Rule.HANG), (Transition.RESOLVED, Rule.HANG)]
    assert state.alerts == ()


def test_one_good_look_does_not_end_a_trouble_that_flickers() -> None:
    looks = [(30.0 * n, [HANG] if n % 2 == 0 else []) for n in range(20)]
    assert told(after(RunAlerts("r"), *looks)) == [(Transition.FIRING, Rule.HANG)]


def test_a_trouble_that_comes_back_is_a_new_one() -> None:
    state = after(RunAlerts("r"), (0, [HANG]), (100, []), (200, [HANG]))
    keys = [entry.key for entry in state.waiting]
    assert len(set(keys)) == 3
    assert state.alerts[0].episode == 2


def test_what_does_not_last_is_never_told() -> None:
    waits = replace(SLOW, for_s=100.0)
    assert told(after(RunAlerts("r"), (0, [waits]), (99, [waits]), (129, []))) == []
    lasting = after(RunAlerts("r"), (0, [waits]), (99, [waits]), (100, [waits]))
    assert told(lasting) == [(Transition.FIRING, Rule.THROUGHPUT)]


def test_a_rule_that_cannot_tell_neither_begins_nor_ends_anything() -> None:
    state = after(RunAlerts("r"), (0, [HANG]))
    unsure = RuleResults((), {Rule.HANG: "no answer"})
    for now in range(30, 9000, 30):
        state = advance(state, unsure, float(now), Timing(1e9, 60.0))
    assert told(state) == [(Transition.FIRING, Rule.HANG)]
    resolved = (Transition.RESOLVED, Rule.HANG)
    assert resolved not in told(after(state, (9000, [])))
    assert resolved in told(after(state, (9000, []), (9060, [])))


def test_a_cause_keeps_its_consequences_quiet_until_it_ends() -> None:
    state = after(RunAlerts("r"), (0, [HANG, SLOW]), (30, [HANG, SLOW]))
    assert told(state) == [(Transition.FIRING, Rule.HANG)]
    assert [alert.muted_by for alert in state.alerts] == ["", "hang"]
    state = after(state, (60, [SLOW]))
    assert len(told(state)) == 1
    resolved, fires = (Transition.RESOLVED, Rule.HANG), (Transition.FIRING, Rule.THROUGHPUT)
    assert told(after(state, (90, [SLOW]), (120, [SLOW])))[1:] == [resolved, fires]


def test_a_consequence_that_was_told_before_its_cause_is_also_resolved() -> None:
    state = after(RunAlerts("r"), (0, [SLOW]), (30, [HANG, SLOW]), (60, [HANG]), (120, [HANG]))
    assert told(state) == [
        (Transition.FIRING, Rule.THROUGHPUT),
        (Transition.FIRING, Rule.HANG),
        (Transition.RESOLVED, Rule.THROUGHPUT),
    ]


def test_news_are_told_once_and_never_resolved() -> None:
    state = after(RunAlerts("r"), (0, [DONE]), (30, []), (90, []), (120, []))
    assert told(state) == [(Transition.FIRING, Rule.FINISHED)]


LOOKS = st.lists(
    st.tuples(
        st.floats(1, 400),
        st.sets(st.sampled_from(range(len(ALL)))),
        st.sets(st.sampled_from(list(Rule)), max_size=3),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(LOOKS)
def test_whatever_happens_messages_alternate_and_have_keys_of_their_own(
    looks: list[tuple[float, set[int], set[Rule]]],
) -> None:
    state, now = RunAlerts("r"), 0.0
    for wait_s, indices, unknown in looks:
        now += wait_s
        findings = tuple(ALL[n] for n in sorted(indices) if ALL[n].rule not in unknown)
        before = state
        state = advance(state, RuleResults(findings, dict.fromkeys(unknown, "?")), now, TIMING)
        assert RunAlerts.from_json(json.loads(json.dumps(state.as_json()))) == state
        _check_muting(before, state)
    assert max(Counter(entry.key for entry in state.waiting).values(), default=1) == 1
    for key in {entry.fingerprint for entry in state.waiting}:
        _check_story([entry for entry in state.waiting if entry.fingerprint == key])


def _check_story(entries: list[Notice]) -> None:
    """firing, then reminders, then resolved, then firing again."""
    open_since: float | None = None
    for entry in entries:
        if entry.event is Transition.FIRING:
            assert open_since is None
            open_since = entry.t
        else:
            assert open_since is not None
        if entry.event is Transition.REMINDER:
            assert entry.severity is Severity.CRITICAL
            assert entry.t - open_since >= TIMING.remind_s
            open_since = entry.t
        if entry.event is Transition.RESOLVED or entry.rule is Rule.FINISHED:
            open_since = None


def _check_muting(before: RunAlerts, state: RunAlerts) -> None:
    firing = {alert.rule for alert in state.firing}
    for entry in state.waiting[len(before.waiting) :]:
        if entry.event is Transition.FIRING:
            assert not MUTED_BY.get(entry.rule, frozenset()) & firing


ROUTES = routes(AlertsConfig(), ("slack", "email", "pagerduty"))


def test_what_comes_close_together_goes_into_one_message() -> None:
    state = after(RunAlerts("r"), (0, [HANG]), (10, [HANG, DONE]))
    assert seal(state, ROUTES, 14.9, group_s=15) == state
    sealed = seal(state, ROUTES, 15, group_s=15)
    found = {m.channel: [entry.rule for entry in m.entries] for m in sealed.outbox}
    assert found == {
        "slack": [Rule.HANG, Rule.FINISHED],
        "email": [Rule.HANG, Rule.FINISHED],
        "pagerduty": [Rule.HANG],
    }
    assert sealed.waiting == ()


def test_the_same_entries_make_the_same_message_key_and_others_another_one() -> None:
    state = after(RunAlerts("r"), (0, [HANG]), (10, [HANG, DONE]))
    first, again = (seal(state, ROUTES, t, group_s=15).outbox for t in (15.0, 99.0))
    assert [m.key for m in first] == [m.key for m in again]
    assert len({m.key for m in first}) == len(first)
    other = seal(after(RunAlerts("s"), (0, [HANG])), ROUTES, 15, group_s=15).outbox
    assert not {m.key for m in other} & {m.key for m in first}


def test_pagerduty_gets_one_event_for_every_alert() -> None:
    disk = replace(HANG, rule=Rule.DISK, subject="space")
    sealed = seal(after(RunAlerts("r"), (0, [HANG, disk])), ROUTES, 15, group_s=15)
    assert [len(m.entries) for m in sealed.outbox if m.channel == "pagerduty"] == [1, 1]


@pytest.mark.parametrize(
    ("given", "severity", "expected"),
    [
        ({}, Severity.CRITICAL, ("slack", "email", "pagerduty")),
        ({}, Severity.WARNING, ("slack", "email")),
        ({"warning": ["pagerduty"]}, Severity.WARNING, ("pagerduty",)),
        ({"info": []}, Severity.INFO, ()),
        ({"critical": ["apprise", "email"]}, Severity.CRITICAL, ("email",)),
    ],
)
def test_severities_are_routed(
    given: dict[str, list[str]], severity: Severity, expected: tuple[str, ...]
) -> None:
    config = AlertsConfig.model_validate(given)
    assert routes(config, ("slack", "email", "pagerduty"))[severity] == expected


def test_samples_survive_the_state_file() -> None:
    samples = Samples(((1.0, 2.0, 3),), ((4.0, 5.0),), ((1, {0: 1.5, 11: 2.5}),), 7, 8.0)
    state = RunAlerts("r", samples=samples)
    assert RunAlerts.from_json(json.loads(json.dumps(state.as_json()))).samples == samples
