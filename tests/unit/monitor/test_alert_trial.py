"""``python -m monitor test-alert``: says of every channel whether it took a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from submitrain.monitor.cli import main
from tests.receivers import http_receiver


def test_every_channel_is_tried_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "alerts.yaml"
    with http_receiver() as web:
        monkeypatch.setenv("HOOK", f"{web.url}/hook")
        monkeypatch.setenv("KEY", "an-integration-key")
        alerts = {
            "slack_webhook": "${HOOK}",
            "pagerduty_key": "${KEY}",
            "pagerduty_url": f"{web.url}/v2/enqueue",
        }
        config.write_text(json.dumps({"alerts": alerts}))
        assert main(["test-alert", "--config", str(config)]) == 0
        assert capsys.readouterr().out == "slack: taken\npagerduty: taken\n"
        events = [one.json["event_action"] for one in web.requests if one.path == "/v2/enqueue"]
        assert events == ["trigger", "resolve"]
        web.status = 403
        assert main(["test-alert", "--config", str(config)]) == 1
        printed = capsys.readouterr()
        assert "slack: failed: 127.0.0.1" in printed.out
        assert "not taken by slack, pagerduty" in printed.err


def test_without_a_channel_it_says_which_keys_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EMAIL_ALERTS", raising=False)
    config = tmp_path / "alerts.yaml"
    config.write_text("alerts: {}\n")
    assert main(["test-alert", "--config", str(config)]) == 2
    assert "slack_webhook, email_to" in capsys.readouterr().err
