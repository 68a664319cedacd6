"""The ``alerts`` and ``monitor`` sections as the monitor needs them: read late, shown never."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from submitrain.config.alerts import AlertsConfig, MonitorConfig
from submitrain.config.document import read_document
from submitrain.config.placeholders import PlaceholderError, expand, hidden, names_secret
from submitrain.config.types import Section
from submitrain.errors import ConfigError

NOT_SHOWN = "[not shown]"
_SHORTEST_SECRET = 8
_SECRETS = (
    "slack_webhook",
    "smtp_password",
    "pagerduty_key",
    "webhook_url",
    "webhook_secret",
    "apprise_url",
    "deadman_url",
)


class NotSetError(Exception):
    """A variable that a channel needs is not set here."""


@dataclass(frozen=True)
class Settings:
    """What one run's alerts need to know. ``environ``: where placeholders are looked up."""

    alerts: AlertsConfig
    limits: MonitorConfig
    checkpoint_interval_steps: int | None
    environ: Mapping[str, str] = field(repr=False)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that are set up, in a fixed order."""
        alerts = self.alerts
        given = {
            "slack": alerts.slack_webhook,
            "email": alerts.email_to or self.environ.get("EMAIL_ALERTS"),
            "pagerduty": alerts.pagerduty_key,
            "webhook": alerts.webhook_url,
            "apprise": alerts.apprise_url,
        }
        found = []
        for name, value in given.items():
            text = value or ""
            with suppress(PlaceholderError):
                text = expand(text, self.environ).strip()  # ${VAR,} means "if it is set"
            if text:
                found.append(name)
        return tuple(found)

    def value(self, key: str, variable: str = "") -> str:
        """The value of a key now, else of its usual variable, else nothing.

        Raises:
            NotSetError: it names a variable that is not set here.
        """
        given = getattr(self.alerts, key)
        if given is None:
            return self.environ.get(variable, "") if variable else ""
        try:
            return expand(str(given), self.environ)
        except PlaceholderError as error:
            raise NotSetError(f"alerts.{key}: {error}") from error

    def redact(self, text: str) -> str:
        """``text`` without the secrets of this environment, and without what looks like one."""
        for value in self._secret_values():
            text = text.replace(value, NOT_SHOWN)
        return hidden(text)

    def _secret_values(self) -> list[str]:
        found = {
            value
            for name, value in self.environ.items()
            if names_secret(name) and len(value) >= _SHORTEST_SECRET and not value.startswith("/")
        }
        for key in _SECRETS:
            try:
                value = self.value(key)
            except NotSetError:
                continue
            if len(value) >= _SHORTEST_SECRET:
                found.add(value)
        return sorted(found, key=len, reverse=True)


def read_settings(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings of a configuration file; other sections, and their variables, do not matter here.

    Raises:
        ConfigError: one of the two sections is wrong.
    """
    environ = os.environ if environ is None else environ
    tree = read_document(path).tree if path.is_file() else {}
    return Settings(
        alerts=_section(AlertsConfig, tree, "alerts", path),
        limits=_section(MonitorConfig, tree, "monitor", path),
        checkpoint_interval_steps=interval_of(tree),
        environ=environ,
    )


def read_interval(path: Path) -> int | None:
    """Steps between checkpoints of a run, whatever its alert settings are; None = none wanted."""
    return interval_of(read_document(path).tree) if path.is_file() else None


def interval_of(tree: Mapping[str, Any]) -> int | None:
    """Steps between checkpoints as a run folder's configuration has them; None = none wanted."""
    checkpoint, scheduler = (tree.get(name) or {} for name in ("checkpoint", "step_scheduler"))
    if checkpoint.get("enabled") is False:
        return None
    steps = scheduler.get("ckpt_every_steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def _section(kind: type[Section], tree: Mapping[str, Any], name: str, path: Path) -> Any:
    try:
        return kind.model_validate(tree.get(name) or {})
    except ValidationError as error:
        lines = [
            f"{name}.{'.'.join(str(part) for part in one['loc'])}: {one['msg']} ({path})"
            for one in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigError(*lines) from error
