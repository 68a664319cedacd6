"""The outbox: retried until taken, in order, never lost, and no secret in any of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from submitrain.monitor.alerts.channels import CHANNELS, DeliveryError, Send
from submitrain.monitor.alerts.delivery import (
    LONGEST_BACKOFF_S,
    Tries,
    backoff_s,
    deliver,
    due,
    tries_of,
)
from submitrain.monitor.alerts.rules import Rule
from submitrain.monitor.alerts.settings import Settings
from submitrain.monitor.alerts.state import Message, Transition
from submitrain.monitor.alerts.store import AlertFiles
from tests.alert_parts import entry, lines, message, outbox, settings
from tests.receivers import http_receiver

TOKEN = "xoxb-1234567890-abcdefghij"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Channel:
    """Takes messages, or raises what the script says."""

    def __init__(self, *script: DeliveryError | Exception | None) -> None:
        self.script = list(script)
        self.got: list[tuple[str, bool]] = []

    def __call__(self, told: Message, config: Settings, repeated: bool) -> str:
        self.got.append((told.key, repeated))
        answer = self.script.pop(0) if self.script else None
        if answer is not None:
            raise answer
        return ""


def no(**fields: Any) -> DeliveryError:
    return DeliveryError("no", **fields)


def outcomes(files: AlertFiles) -> list[str]:
    return [line["outcome"] for line in lines(files.deliveries)]


def run(files: AlertFiles, channel: Send, clock: Clock, **config: Any) -> None:
    deliver(
        files, settings(**config), channels={"slack": channel, "pagerduty": channel}, clock=clock
    )


def test_a_message_is_sent_once_and_written_down_before_and_after(tmp_path: Path) -> None:
    files, channel = outbox(tmp_path, message("slack")), Channel()
    for _ in range(3):
        run(files, channel, Clock())
    assert channel.got == [("k1", False)]
    assert outcomes(files) == ["trying", "sent"]


def test_what_passes_quickly_is_tried_again_at_once(tmp_path: Path) -> None:
    files, channel = outbox(tmp_path, message("slack")), Channel(no(transient=True))
    run(files, channel, Clock())
    assert channel.got == [("k1", False)] * 2
    assert outcomes(files) == ["trying", "sent"]


def test_a_channel_that_is_down_gets_the_message_when_it_is_back(tmp_path: Path) -> None:
    files, clock = outbox(tmp_path, message("slack")), Clock()
    channel = Channel(*[no()] * 4)
    for _ in range(200):
        run(files, channel, clock)
        clock.now += 1.0
    assert outcomes(files) == ["trying", "failed"] * 4 + ["trying", "sent"]
    assert len(channel.got) == 5


def test_the_wait_grows_to_a_limit() -> None:
    waits = [backoff_s(n) for n in range(1, 50)]
    assert waits[:3] == [5.0, 10.0, 20.0]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_BACKOFF_S


def test_the_receivers_wish_to_wait_is_respected(tmp_path: Path) -> None:
    files, clock = outbox(tmp_path, message("slack")), Clock()
    channel = Channel(no(transient=True, retry_after_s=120.0))
    run(files, channel, clock)
    clock.now += 119
    run(files, channel, clock)
    assert len(channel.got) == 1
    clock.now += 2
    run(files, channel, clock)
    assert outcomes(files)[-1] == "sent"


def test_a_try_without_an_end_is_repeated_as_one_that_may_have_arrived(tmp_path: Path) -> None:
    files, channel = outbox(tmp_path, message("slack")), Channel()
    files.append_delivery({"t": 1.0, "key": "k1", "channel": "slack", "outcome": "trying"})
    run(files, channel, Clock())
    assert channel.got == [("k1", True)]


def test_a_lost_answer_is_not_repeated_at_once_but_later_and_marked(tmp_path: Path) -> None:
    files, clock = outbox(tmp_path, message("slack")), Clock()
    channel = Channel(no(transient=True, uncertain=True))
    run(files, channel, clock)
    assert channel.got == [("k1", False)]
    clock.now += 10
    run(files, channel, clock)
    assert channel.got[1:] == [("k1", True)]


def test_a_resolve_never_overtakes_its_alert(tmp_path: Path) -> None:
    told = (
        message("pagerduty", entry(), key="k1"),
        message("pagerduty", entry(Transition.RESOLVED), key="k2"),
        message("pagerduty", entry(rule=Rule.DISK), key="k3"),
    )
    files, clock = outbox(tmp_path, *told), Clock()
    channel = Channel(no())
    run(files, channel, clock)
    assert [key for key, _ in channel.got] == ["k1", "k3"]
    clock.now += 10
    run(files, channel, clock)
    assert [key for key, _ in channel.got] == ["k1", "k3", "k1", "k2"]


def test_one_channels_trouble_does_not_hold_up_another(tmp_path: Path) -> None:
    told = message("slack", key="k1"), message("slack", entry(rule=Rule.DISK), key="k2")
    files = outbox(tmp_path, *told, message("pagerduty", key="k3"))
    slack, pagerduty = Channel(*[no(transient=True)] * 9), Channel()
    channels: dict[str, Send] = {"slack": slack, "pagerduty": pagerduty}
    deliver(files, settings(), channels=channels, clock=Clock())
    assert [key for key, _ in pagerduty.got] == ["k3"]
    assert {key for key, _ in slack.got} == {"k1"}


def test_whatever_a_channel_raises_the_others_go_on(tmp_path: Path) -> None:
    files = outbox(tmp_path, message("slack"), message("pagerduty", key="k2"))
    channel = Channel(KeyError("oops"))
    run(files, channel, Clock())
    assert outcomes(files) == ["trying", "failed", "trying", "sent"]
    assert "KeyError" in lines(files.deliveries)[1]["error"]


def test_it_is_given_up_after_days_and_that_is_written_down(tmp_path: Path) -> None:
    files, clock = outbox(tmp_path, message("slack")), Clock()
    channel = Channel(*[no()] * 9)
    run(files, channel, clock, give_up_s="1h")
    clock.now += 3601
    run(files, channel, clock, give_up_s="1h")
    run(files, channel, clock, give_up_s="1h")
    assert outcomes(files) == ["trying", "failed", "trying", "given_up"]


def test_two_senders_do_not_send_twice(tmp_path: Path) -> None:
    files = outbox(tmp_path, message("slack"))
    with files.locked("outbox") as mine:
        assert mine
        assert not deliver(files, settings(), channels={"slack": Channel()})
    assert not files.deliveries.exists()


def test_tries_are_read_back_from_the_file() -> None:
    def line(outcome: str, **more: Any) -> dict[str, Any]:
        return {"key": "k", "outcome": outcome, **more}

    assert tries_of([line("trying")])["k"] == Tries(uncertain=True)
    failed = tries_of([line("trying"), line("failed", next_at=7.0, uncertain=False)])
    assert failed["k"] == Tries(failures=1, next_at=7.0)
    assert tries_of([line("trying"), line("sent")])["k"].done
    assert due([message("slack", key="k")], failed, 6.9) == []
    assert len(due([message("slack", key="k")], failed, 7.0)) == 1


@pytest.mark.parametrize("status", [200, 403])
def test_no_secret_reaches_a_file_or_an_error(tmp_path: Path, status: int) -> None:
    with http_receiver() as web:
        web.status = status
        environ = {
            "HOOK": f"{web.url}/{TOKEN}",
            "SIGN_KEY": "very-s3cret-key",
            "DB_PASSWORD": "hunter22",
        }
        config = settings(environ, webhook_url="${HOOK}", webhook_secret="${SIGN_KEY}")
        files = outbox(tmp_path, message("webhook"))
        deliver(files, config, channels=CHANNELS)
        assert len(web.requests) == 1
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "webhook" in written
    for secret in (TOKEN, "very-s3cret-key", "hunter22"):
        assert secret not in written
        assert secret not in repr(config)
    assert config.redact(f"GET {environ['HOOK']} hunter22") == "GET [not shown] [not shown]"
