"""The alerts and monitor sections: strict, without secrets, and no business of the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from submitrain.config.resolve import load_resolved
from submitrain.errors import ConfigError
from submitrain.monitor.alerts.settings import NotSetError, interval_of, read_settings
from tests.config_parts import load

SECRETS: dict[str, Any] = {
    "slack_webhook": "${SLACK_WEBHOOK_URL}",
    "email_to": "${TEAM_MAIL}",
    "smtp_password": "${SMTP_PASSWORD}",
    "pagerduty_key": "${PAGERDUTY_KEY}",
    "webhook_url": "${HOOK_URL}",
    "webhook_secret": "${HOOK_KEY}",
    "apprise_url": "${APPRISE_URL}",
    "deadman_url": "${PING_URL}",
}


def test_a_run_starts_where_the_monitors_variables_are_not_set(tmp_path: Path) -> None:
    loaded = load({"alerts": SECRETS})
    (tmp_path / "config.yaml").write_text(loaded.text)
    assert load_resolved(tmp_path / "config.yaml", {}).alerts == loaded.config.alerts
    for placeholder in SECRETS.values():
        assert placeholder in loaded.text


def test_the_monitor_reads_the_variables_when_it_sends(tmp_path: Path) -> None:
    loaded = load({"alerts": SECRETS})
    (tmp_path / "config.yaml").write_text(loaded.text)
    settings = read_settings(tmp_path / "config.yaml", {"SLACK_WEBHOOK_URL": "https://x/y"})
    assert settings.value("slack_webhook") == "https://x/y"
    with pytest.raises(NotSetError, match="HOOK_URL"):
        settings.value("webhook_url")
    assert settings.channels == ("slack", "email", "pagerduty", "webhook", "apprise")


def test_a_channel_of_an_empty_optional_variable_is_not_set_up(tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text("alerts: {slack_webhook: '${SLACK_WEBHOOK_URL,}'}\n")
    assert read_settings(path, {}).channels == ()
    assert read_settings(path, {"SLACK_WEBHOOK_URL": "https://x/y"}).channels == ("slack",)
    assert read_settings(path, {"EMAIL_ALERTS": "a@x.org"}).channels == ("email",)


@pytest.mark.parametrize("key", sorted(set(SECRETS) - {"email_to", "webhook_url"}))
def test_a_secret_that_is_written_out_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"alerts.{key}: expected a placeholder") as caught:
        load({"alerts": {key: "https://hooks.example/T0/B0/s3cr3t"}})
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"monitor": {"hang_step": 5}}, "did you mean monitor.hang_step_s"),
        ({"monitor": {"straggler_ratio": 2}}, "expected a number > 0 and < 1"),
        ({"monitor": {"autostart": True}}, "one of off, sidecar, job"),
        ({"monitor": {"job": {"mem": "1G"}}}, "expected monitor.autostart: job"),
        ({"alerts": {"critical": ["sms"]}}, "slack, email, pagerduty, webhook, apprise"),
        ({"alerts": {"group_s": 301}}, "<= 300"),
    ],
)
def test_wrong_keys_and_values_are_refused(sections: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(sections)
    assert expected in str(caught.value)


def test_who_watches_a_run_does_not_change_which_run_it_is() -> None:
    plain = load()
    watched = load({"alerts": SECRETS, "monitor": {"queue_s": "2h"}})
    assert watched.digest == plain.digest
    assert watched.config.monitor.queue_s == 7200


@pytest.mark.parametrize(
    ("tree", "interval"),
    [
        ({"step_scheduler": {"ckpt_every_steps": 50}}, 50),
        ({"step_scheduler": {"ckpt_every_steps": None}}, None),
        ({"step_scheduler": {"ckpt_every_steps": 50}, "checkpoint": {"enabled": False}}, None),
        ({}, None),
    ],
)
def test_the_checkpoint_interval_is_read_from_the_runs_own_configuration(
    tree: dict[str, Any], interval: int | None
) -> None:
    assert interval_of(tree) == interval
