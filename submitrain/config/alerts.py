"""``alerts`` and ``monitor``: where alerts go, and from which value on something is one.

Used by ``python -m monitor`` only; no rank and no supervisor needs these variables, so their
placeholders are read when an alert is sent and never before. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

from submitrain.config.types import (
    DurationS,
    OptionalInt,
    OptionalStr,
    Secret,
    Section,
    key,
    none_word,
    parse_off,
)

ChannelName = Literal["slack", "email", "pagerduty", "webhook", "apprise"]
OptionalChannels = Annotated[list[ChannelName] | None, BeforeValidator(none_word)]
Security = Literal["auto", "none", "starttls", "tls"]
OptionalDurationS = Annotated[DurationS | None, BeforeValidator(none_word)]


def parse_autostart(value: Any) -> Any:
    """``beside`` is what ``sidecar`` was called; YAML 1.1 reads an unquoted ``off`` as false."""
    return "sidecar" if value == "beside" else parse_off(value)


Autostart = Annotated[
    Literal["off", "sidecar", "job"],
    BeforeValidator(parse_autostart),
    WithJsonSchema({"enum": ["off", "sidecar", "job", False]}),
]


class AlertsConfig(Section):
    """Where alerts go. Secrets are ${VAR} placeholders, read by the monitor when it sends."""

    slack_webhook: Secret = key(None, "Incoming webhook of Slack, as ${VAR} only.")
    email_to: OptionalStr = key(None, "Receivers, with commas; none = the variable EMAIL_ALERTS.")
    email_from: OptionalStr = key(None, "Sender of mail; none = submitrain@<host name>.")
    smtp_host: OptionalStr = key(
        None, "Mail server; none = the variable SMTP_HOST, else localhost."
    )
    smtp_port: OptionalInt = key(None, "Its port; none = SMTP_PORT, else 25.", ge=1, le=65535)
    smtp_security: Security = key(
        "auto",
        "none, starttls, tls; auto = tls on port 465, else starttls where another machine offers "
        "it.",
    )
    smtp_user: OptionalStr = key(None, "Login there; none = the variable SMTP_USER, if set.")
    smtp_password: Secret = key(None, "Password, as ${VAR} only; none = SMTP_PASSWORD, if set.")
    pagerduty_key: Secret = key(None, "Routing key of PagerDuty Events v2, as ${VAR} only.")
    pagerduty_url: str = key(
        "https://events.pagerduty.com/v2/enqueue",
        "Events v2 endpoint (events.eu.pagerduty.com for EU accounts).",
    )
    webhook_url: OptionalStr = key(None, "Receiver of signed JSON; may be a ${VAR} placeholder.")
    webhook_secret: Secret = key(
        None, "Key of the webhook's HMAC-SHA256 signature, as ${VAR} only."
    )
    apprise_url: Secret = key(
        None, "Apprise URLs with commas, as ${VAR} only; needs the apprise extra."
    )
    deadman_url: Secret = key(
        None,
        "Fetched after every complete poll, as ${VAR} only: whoever misses the pings knows that "
        "the monitor is dead.",
    )
    critical: OptionalChannels = key(
        None, "Channels for critical alerts; none = all that are set up."
    )
    warning: OptionalChannels = key(None, "Channels for warnings; none = all but pagerduty.")
    info: OptionalChannels = key(None, "Channels for news (finished); none = all but pagerduty.")
    group_s: int = key(15, "Seconds that a message waits for others to join it.", ge=0, le=300)
    remind_s: DurationS = key(4 * 3600, "Time between reminders of a critical alert that goes on.")
    give_up_s: DurationS = key(
        3 * 86400, "Time after which a message that no channel took is given up."
    )


LATE = frozenset(
    ("alerts", name)
    for name in AlertsConfig.model_fields
    if name.startswith(("slack", "email", "smtp_host", "smtp_user", "smtp_password"))
    or name in ("pagerduty_key", "webhook_url", "webhook_secret", "apprise_url", "deadman_url")
)
"""Keys whose placeholders only the monitor expands, when it sends."""


class WatcherJobConfig(Section):
    """The Slurm job of the watcher, with autostart: job; what is none is as in slurm."""

    partition: OptionalStr = key(None, "Partition; none = slurm.partition.")
    account: OptionalStr = key(None, "Account; none = slurm.account.")
    qos: OptionalStr = key(None, "QOS; none = slurm.qos.")
    time: OptionalDurationS = key(
        None,
        "Time limit of the job, which goes back into the queue at its end as long as the run "
        "lasts; none = slurm.time.",
    )
    mem: str = key("512M", "Memory.", min_length=1)
    cpus: int = key(1, "CPU cores.", ge=1)


class MonitorConfig(Section):
    """Who watches the run, and from which value on something is an alert."""

    autostart: Autostart = key(
        "off",
        "A watcher that starts with the run and sends its alerts: off, sidecar (a process on the "
        "first node, or on this machine), job (a Slurm job of its own; on this machine a sidecar).",
    )
    job: WatcherJobConfig = key(WatcherJobConfig(), "Resources of the watcher with autostart: job.")
    interval_s: float = key(30.0, "Seconds between polls.", gt=0)
    hang_step_s: int = key(
        60,
        "Seconds without a step that are a hang, at least; 5 x the 99th percentile of this run's "
        "steps where that is longer.",
        ge=1,
    )
    hang_start_s: int = key(
        1800, "The same for imports, rendezvous, data, model, loading and the first step.", ge=1
    )
    hang_validate_s: int = key(1800, "The same for a validation.", ge=1)
    hang_save_s: int = key(1800, "The same for a save or the export.", ge=1)
    straggler_ratio: float = key(
        0.75, "Best compute time / a rank's, below which it lags.", gt=0, lt=1
    )
    straggler_windows: int = key(5, "Polls in a row that a rank has to lag.", ge=1)
    throughput_ratio: float = key(0.8, "Share of the usual tokens/s that is slow.", gt=0, lt=1)
    throughput_s: int = key(300, "Seconds that it has to be slow for.", ge=1)
    loss_spike_z: float = key(
        6.0, "Robust standard deviations above the median that make a loss high.", gt=0
    )
    loss_spike_steps: int = key(3, "Steps in a row with a high loss.", ge=1)
    checkpoint_intervals: float = key(2.0, "Intervals after which a checkpoint is overdue.", ge=1)
    disk_checkpoints: float = key(2.0, "Free space below so many checkpoints is too little.", gt=0)
    disk_full_h: float = key(
        24.0, "Hours to a full disk, at the present pace, that are too few.", gt=0
    )
    crash_loop_restarts: int = key(3, "Failed attempts without a new step.", ge=1)
    requeues_per_day: int = key(
        5, "Requeues in 24 hours, time limits apart, that are too many.", ge=1
    )
    queue_s: DurationS = key(86400, "Time in the queue that is too long.")
