"""The rules over what reaches the ranks: what breaks the run, and what only costs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from launcher.environment.rules import (
    CONFIGURED_RULES,
    OURS,
    OWN_NAMES,
    RULES,
    Rule,
    Setting,
)

SHELL = "the environment of this shell"


@dataclass(frozen=True)
class Complaint:
    """One variable that does harm."""

    name: str
    value: str
    verdict: Literal["error", "warning"]
    reason: str
    source: str
    origin: str
    """``slurm.env``, or the shell that launches."""

    @property
    def text(self) -> str:
        """For one line of the terminal."""
        where = f"slurm.env.{self.name}" if self.origin == "slurm.env" else self.name
        told = f"{where}: {self.value}" if self.value else f"{where} (empty)"
        who = "" if self.origin == "slurm.env" else f" ({self.origin})"
        return f"{told}{who}: {self.reason} [{self.source}]"

    def as_json(self) -> dict[str, str]:
        """For ``--json``."""
        return asdict(self)


def lint(
    configured: Mapping[str, str], inherited: Mapping[str, str], setting: Setting
) -> list[Complaint]:
    """Complaints about ``slurm.env`` and the inherited environment, errors first.

    What the configuration sets hides what the shell has under the same name.
    """
    reaching = {**inherited, **configured}
    found = [
        *_own_names(configured),
        *_apply(CONFIGURED_RULES, configured, configured, setting, "slurm.env"),
        *_apply(RULES, configured, reaching, setting, "slurm.env"),
        *_apply(
            RULES,
            {name: value for name, value in inherited.items() if name not in configured},
            reaching,
            setting,
            SHELL,
        ),
    ]
    return sorted(found, key=lambda one: one.verdict != "error")


def _apply(
    rules: Iterable[Rule],
    variables: Mapping[str, str],
    reaching: Mapping[str, str],
    setting: Setting,
    origin: str,
) -> Iterator[Complaint]:
    for rule in rules:
        value = variables.get(rule.variable)
        if value is None or "${" in value or not rule.applies(value, reaching, setting):
            continue
        yield Complaint(rule.variable, value, rule.verdict, rule.reason, rule.source, origin)


def _own_names(configured: Mapping[str, str]) -> Iterator[Complaint]:
    for name, value in configured.items():
        if OWN_NAMES.match(name):
            reason = "Slurm and submitrain set variables of this name themselves: remove it"
            yield Complaint(name, value, "error", reason, OURS, "slurm.env")
