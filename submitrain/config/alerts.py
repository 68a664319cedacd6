"""``alerts`` and ``monitor``: where alerts go, and from which value on something is one.

Used by ``python -m monitor`` only; no rank and no supervisor needs these variables, so their
placeholders are read when an alert is sent and never before. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from submitrain.config.types import (
    DurationS,
    OptionalInt,
    OptionalStr,
    Secret,
    Section,
    none_word,
    parse_off,
)

ChannelName = Literal["slack", "email", "pagerduty", "webhook", "apprise"]
OptionalChannels = Annotated[list[ChannelName] | None, BeforeValidator(none_word)]
Security = Literal["auto", "none", "starttls", "tls"]
OptionalDurationS = Annotated[DurationS | None, BeforeValidator(none_word)]
Autostart = Annotated[
    Literal["off", "beside", "job"],
    BeforeValidator(parse_off),
    WithJsonSchema({"enum": ["off", "beside", "job", False]}),
]


class AlertsConfig(Section):
    """Where alerts go. Secrets are ${VAR} placeholders, read by the monitor when it sends."""

    slack_webhook: Secret = Field(None, description="Incoming webhook of Slack, as ${VAR} only.")
    email_to: OptionalStr = Field(
        None,
        description="Receivers of mail, with commas; none = the variable EMAIL_ALERTS, if set.",
    )
    email_from: OptionalStr = Field(
        None, description="Sender of mail; none = submitrain@<host name>."
    )
    smtp_host: OptionalStr = Field(
        None, description="Mail server; none = the variable SMTP_HOST, else localhost."
    )
    smtp_port: OptionalInt = Field(
        None, ge=1, le=65535, description="Its port; none = the variable SMTP_PORT, else 25."
    )
    smtp_security: Security = Field(
        "auto",
        description="none, starttls, tls; auto = tls on port 465, else starttls where another "
        "machine offers it.",
    )
    smtp_user: OptionalStr = Field(
        None, description="Login there; none = the variable SMTP_USER, if set."
    )
    smtp_password: Secret = Field(
        None, description="Password, as ${VAR} only; none = the variable SMTP_PASSWORD, if set."
    )
    pagerduty_key: Secret = Field(
        None, description="Integration (routing) key of PagerDuty Events v2, as ${VAR} only."
    )
    pagerduty_url: str = Field(
        "https://events.pagerduty.com/v2/enqueue",
        description="Events v2 endpoint (events.eu.pagerduty.com for EU accounts).",
    )
    webhook_url: OptionalStr = Field(
        None, description="Receiver of signed JSON; may be a ${VAR} placeholder."
    )
    webhook_secret: Secret = Field(
        None, description="Key of the webhook's HMAC-SHA256 signature, as ${VAR} only."
    )
    apprise_url: Secret = Field(
        None, description="Apprise URLs, with commas, as ${VAR} only; needs the apprise extra."
    )
    deadman_url: Secret = Field(
        None,
        description="Fetched after every complete look, as ${VAR} only: whoever misses the pings "
        "knows that the monitor is dead.",
    )
    critical: OptionalChannels = Field(
        None, description="Channels for critical alerts; none = all that are set up."
    )
    warning: OptionalChannels = Field(
        None, description="Channels for warnings; none = all that are set up but pagerduty."
    )
    info: OptionalChannels = Field(
        None, description="Channels for news (finished); none = all that are set up but pagerduty."
    )
    group_s: int = Field(
        15, ge=0, le=300, description="Seconds that a message waits for others to join it."
    )
    remind_s: DurationS = Field(
        4 * 3600, description="Time between reminders of a critical alert that goes on."
    )
    give_up_s: DurationS = Field(
        3 * 86400, description="Time after which a message that no channel took is given up."
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

    partition: OptionalStr = Field(None, description="Partition; none = slurm.partition.")
    account: OptionalStr = Field(None, description="Account; none = slurm.account.")
    qos: OptionalStr = Field(None, description="QOS; none = slurm.qos.")
    time: OptionalDurationS = Field(
        None,
        description="Time limit of the job, which goes back into the queue at its end as long as "
        "the run lasts; none = slurm.time.",
    )
    mem: str = Field("512M", min_length=1, description="Memory.")
    cpus: int = Field(1, ge=1, description="CPU cores.")


class MonitorConfig(Section):
    """Who watches the run, and from which value on something is an alert."""

    autostart: Autostart = Field(
        "off",
        description="A watcher that starts with the run and sends its alerts: off, beside (a "
        "process on the first node, or on this machine), job (a Slurm job of its own; on this "
        "machine as beside).",
    )
    job: WatcherJobConfig = Field(
        default=WatcherJobConfig(), description="Resources of the watcher with autostart: job."
    )
    interval_s: float = Field(30.0, gt=0, description="Seconds between looks.")
    hang_step_s: int = Field(
        60,
        ge=1,
        description="Seconds without a step that are a hang, at least; 5 x the 99th percentile of "
        "this run's steps where that is longer.",
    )
    hang_start_s: int = Field(
        1800,
        ge=1,
        description="The same for imports, rendezvous, data, model, loading and the first step.",
    )
    hang_validate_s: int = Field(1800, ge=1, description="The same for a validation.")
    hang_save_s: int = Field(1800, ge=1, description="The same for a save or the export.")
    straggler_ratio: float = Field(
        0.75, gt=0, lt=1, description="Best rank's compute time / a rank's, below which it lags."
    )
    straggler_windows: int = Field(5, ge=1, description="Looks in a row that a rank has to lag.")
    throughput_ratio: float = Field(
        0.8, gt=0, lt=1, description="Share of the usual tokens/s below which a run is slow."
    )
    throughput_s: int = Field(300, ge=1, description="Seconds that it has to be slow for.")
    loss_spike_z: float = Field(
        6.0, gt=0, description="Robust standard deviations above the median that make a loss high."
    )
    loss_spike_steps: int = Field(3, ge=1, description="Steps in a row with a high loss.")
    checkpoint_intervals: float = Field(
        2.0, ge=1, description="Checkpoint intervals after which a missing one is overdue."
    )
    disk_checkpoints: float = Field(
        2.0, gt=0, description="Free space below so many checkpoints is too little."
    )
    disk_full_h: float = Field(
        24.0, gt=0, description="Hours to a full disk, at the present pace, that are too few."
    )
    crash_loop_restarts: int = Field(3, ge=1, description="Failed attempts without a new step.")
    requeues_per_day: int = Field(
        5, ge=1, description="Requeues in 24 hours, time limits apart, that are too many."
    )
    queue_s: DurationS = Field(86400, description="Time in the queue that is too long.")
