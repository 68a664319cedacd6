"""Every channel against a real server on loopback: what arrives, and what an error means."""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from submitrain.monitor.alerts.channels import CHANNELS, SIGNATURE, TIMESTAMP, DeliveryError
from submitrain.monitor.alerts.rules import Rule
from submitrain.monitor.alerts.settings import NotSetError
from submitrain.monitor.alerts.state import Transition
from tests.alert_parts import RUN_ID, entry, message, settings
from tests.cluster.ports import free_ports
from tests.documents import block_of
from tests.receivers import HttpReceiver, SmtpReceiver, http_receiver, smtp_receiver


@pytest.fixture
def web() -> Iterator[HttpReceiver]:
    with http_receiver() as receiver:
        yield receiver


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def mail_server() -> Iterator[SmtpReceiver]:
    with smtp_receiver() as receiver:
        yield receiver


def environ_of(web: HttpReceiver) -> dict[str, str]:
    return {"URL": f"{web.url}/hook", "KEY": "r0uting-key-of-32-characters-0001", "SIGN": "s3cret!"}


SLACK: dict[str, Any] = {"slack_webhook": "${URL}"}
WEBHOOK: dict[str, Any] = {"webhook_url": "${URL}", "webhook_secret": "${SIGN}"}


def pagerduty(web: HttpReceiver) -> dict[str, Any]:
    return {"pagerduty_key": "${KEY}", "pagerduty_url": f"{web.url}/v2/enqueue"}


def mail(server: SmtpReceiver, **more: Any) -> dict[str, Any]:
    return {"email_to": "ada@x.org, bob@x.org", "smtp_port": server.port, **more}


def send(name: str, config: dict[str, Any], environ: dict[str, str], **more: Any) -> str:
    sent = more.get("message", message(name))
    return CHANNELS[name](sent, settings(environ, **config), more.get("repeated", False))


def test_slack_gets_the_alert_with_its_control_characters_escaped(web: HttpReceiver) -> None:
    told = message(
        "slack", entry(text="loss <b> & more"), entry(Transition.RESOLVED, rule=Rule.DISK)
    )
    send("slack", SLACK, environ_of(web), message=told)
    (request,) = web.requests
    assert request.path == "/hook"
    text = request.json["text"]
    assert f"*CRITICAL {RUN_ID}: hang*" in text
    assert "loss &lt;b&gt; &amp; more" in text
    assert "RESOLVED" in text


def test_slack_is_told_when_a_message_may_be_there_already(web: HttpReceiver) -> None:
    send("slack", SLACK, environ_of(web), repeated=True)
    assert "sent again" in web.requests[0].json["text"]


def test_the_webhooks_signature_covers_time_and_body(web: HttpReceiver) -> None:
    send("webhook", WEBHOOK, environ_of(web))
    (request,) = web.requests
    stamp, signature = (request.headers[name.lower()] for name in (TIMESTAMP, SIGNATURE))
    signed = hmac.new(b"s3cret!", stamp.encode() + b"." + request.body, hashlib.sha256)
    assert signature == f"sha256={signed.hexdigest()}"
    received = {"timestamp": stamp, "body": request.body, "signature": signature}
    check = block_of("monitoring.md", "python").text
    exec(check, {"secret": b"s3cret!", **received})
    with pytest.raises(AssertionError):
        exec(check, {"secret": b"another", **received})
    assert request.headers["idempotency-key"] == "k1"
    assert request.json["entries"][0]["rule"] == "hang"


def test_pagerduty_is_triggered_and_resolved_under_one_dedup_key(web: HttpReceiver) -> None:
    web.status = 202
    for event in (Transition.FIRING, Transition.REMINDER, Transition.RESOLVED):
        told = message("pagerduty", entry(event))
        send("pagerduty", pagerduty(web), environ_of(web), message=told)
    sent = [request.json for request in web.requests]
    assert [one["event_action"] for one in sent] == ["trigger", "trigger", "resolve"]
    assert {one["dedup_key"] for one in sent} == {"f00d-hang"}
    assert {one["routing_key"] for one in sent} == {environ_of(web)["KEY"]}
    assert sent[0]["payload"]["severity"] == "critical"
    assert "payload" not in sent[2]


def test_a_mail_reaches_every_receiver_and_keeps_its_message_id(mail_server: SmtpReceiver) -> None:
    for _ in range(2):
        send("email", mail(mail_server), {})
    first, again = mail_server.mails
    assert first["Message-ID"] == again["Message-ID"]
    assert first["Subject"] == f"[submitrain] CRITICAL {RUN_ID}: hang"
    assert first["To"] == "ada@x.org, bob@x.org"
    assert "no progress for 61 s" in first.get_payload()
    assert "next: look at it" in first.get_payload()


def test_mail_settings_may_come_from_the_environment(mail_server: SmtpReceiver) -> None:
    environ = {
        "EMAIL_ALERTS": "eve@x.org",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(mail_server.port),
    }
    assert settings(environ).channels == ("email",)
    send("email", {}, environ)
    assert mail_server.mails[0]["To"] == "eve@x.org"


def test_a_refused_receiver_is_noted_and_the_others_get_the_mail_once(
    mail_server: SmtpReceiver,
) -> None:
    mail_server.refuse = {"bob@x.org"}
    assert send("email", mail(mail_server), {}) == "refused receivers: bob@x.org"
    assert len(mail_server.mails) == 1
    mail_server.refuse = {"ada@x.org", "bob@x.org"}
    with pytest.raises(DeliveryError, match="refused receivers") as caught:
        send("email", mail(mail_server), {})
    assert not caught.value.transient


@pytest.mark.parametrize(("answer", "transient"), [("451 later", True), ("554 never", False)])
def test_a_mail_servers_no_is_told_apart_from_its_not_now(
    answer: str, transient: bool, mail_server: SmtpReceiver
) -> None:
    mail_server.script = [answer]
    with pytest.raises(DeliveryError, match=answer[:3]) as caught:
        send("email", mail(mail_server), {})
    assert caught.value.transient is transient


def test_a_mail_server_that_is_not_there_is_worth_another_try(free_port: int) -> None:
    with pytest.raises(DeliveryError, match="ConnectionRefused") as caught:
        send("email", {"email_to": "a@x.org", "smtp_port": free_port}, {})
    assert (caught.value.transient, caught.value.uncertain) == (True, False)


@pytest.mark.parametrize(
    ("status", "transient"),
    [(400, False), (404, False), (302, False), (408, True), (429, True), (500, True), (503, True)],
)
def test_what_a_web_server_answers_decides_on_another_try(
    status: int, transient: bool, web: HttpReceiver
) -> None:
    web.status, web.headers = status, {"Location": f"{web.url}/elsewhere", "Retry-After": "7"}
    with pytest.raises(DeliveryError, match=str(status)) as caught:
        send("slack", SLACK, environ_of(web))
    assert (caught.value.transient, caught.value.retry_after_s) == (transient, 7.0)
    assert len(web.requests) == 1  # a redirect would have lost the message


def test_a_lost_answer_means_that_the_message_may_have_arrived(web: HttpReceiver) -> None:
    web.script = ["drop"]
    with pytest.raises(DeliveryError, match="did not answer") as caught:
        send("webhook", WEBHOOK, environ_of(web))
    assert caught.value.uncertain


def test_a_refused_connection_means_that_nothing_arrived(free_port: int) -> None:
    with pytest.raises(DeliveryError) as caught:
        send("slack", SLACK, {"URL": f"http://127.0.0.1:{free_port}/"})
    assert (caught.value.transient, caught.value.uncertain) == (True, False)


def test_a_url_of_another_kind_is_refused_without_showing_it() -> None:
    with pytest.raises(DeliveryError, match="not shown") as caught:
        send("slack", SLACK, {"URL": "file:///etc/s3cret"})
    assert "s3cret" not in str(caught.value)


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(NotSetError, match=r"alerts.slack_webhook: .*URL is not set"):
        send("slack", SLACK, {})


def test_apprise_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)  # what the import system does for "not there"
    with pytest.raises(DeliveryError, match=r"pip install 'submitrain\[apprise\]'"):
        send("apprise", {"apprise_url": "${A}"}, {"A": "json://localhost"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # apprise imports imghdr
def test_apprise_tells_every_one_of_its_services(web: HttpReceiver) -> None:
    urls = ", ".join(f"json://127.0.0.1:{web.port}/{name}" for name in ("one", "two"))
    send("apprise", {"apprise_url": "${A}"}, {"A": urls})
    assert {request.path for request in web.requests} == {"/one", "/two"}
    assert {request.json["type"] for request in web.requests} == {"failure"}
    assert "no progress for 61 s" in web.requests[0].json["message"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # apprise imports imghdr
def test_an_apprise_service_that_refuses_is_an_error(web: HttpReceiver) -> None:
    web.status = 500
    with pytest.raises(DeliveryError, match="did not take it"):
        send("apprise", {"apprise_url": "${A}"}, {"A": f"json://127.0.0.1:{web.port}/"})
    with pytest.raises(DeliveryError, match="none it knows"):
        send("apprise", {"apprise_url": "${A}"}, {"A": "nonsense://x"})
