"""Value types of the configuration (durations, dtypes, node counts, secrets) and its base classes.

Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from submitrain.config.placeholders import PLACEHOLDER

UNLIMITED_S = 365 * 24 * 3600
"""What UNLIMITED and INFINITE stand for: a year, since every plan needs a number."""
MAX_NODES = 100_000
"""More than any cluster has: a larger number is a slip of the finger."""

_DTYPE_ALIASES = {"fp32": "float32", "float": "float32", "bf16": "bfloat16"}
_DTYPE_ALIASES |= {"fp16": "float16", "half": "float16"}
_SUFFIX_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration_s(value: Any) -> int:
    """Seconds of a time limit in any spelling that sbatch knows, or with a unit (``90m``, ``2d``).

    sbatch(1), ``--time``: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
    days-hours:minutes, days-hours:minutes:seconds; UNLIMITED and INFINITE. A bare number is
    minutes.

    Raises:
        ValueError: none of these.
    """
    text = "" if isinstance(value, bool) else str(value).strip()
    seconds = 0
    if text.upper() in {"UNLIMITED", "INFINITE"}:
        seconds = UNLIMITED_S
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.lower()):
        seconds = round(float(match[1]) * _SUFFIX_S.get(match[2], 0))
    elif re.fullmatch(r"(?:\d+-)?\d+(?::\d+){0,2}", text):
        days, _, clock = text.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if not days and len(parts) < 3:
            parts = [0, *parts]
        hours, minutes, rest = [*parts, 0, 0][:3]
        seconds = int(days or 0) * 86400 + hours * 3600 + minutes * 60 + rest
    if seconds <= 0:
        raise ValueError(
            f"expected a duration, got {value!r}; allowed: minutes (90), MM:SS, HH:MM:SS "
            "(24:00:00), D-HH, D-HH:MM, D-HH:MM:SS (1-12:00:00), a unit (90s, 30m, 24h, 2d), "
            "UNLIMITED"
        )
    return seconds


def format_duration(seconds: int) -> str:
    """Slurm's ``[D-]HH:MM:SS`` for a number of seconds."""
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def parse_dtype(value: Any) -> Any:
    """``torch.bfloat16``, ``bf16`` and the like as torch's own name of the dtype."""
    if isinstance(value, str):
        name = value.strip().removeprefix("torch.").lower()
        return _DTYPE_ALIASES.get(name, name)
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value


def none_word(value: Any) -> Any:
    """YAML has ``null``; configurations of this family also write ``none``."""
    return (
        None if isinstance(value, str) and value.strip().lower() in {"none", "null", ""} else value
    )


def require_placeholder(value: Any) -> Any:
    """Secrets may only be named, never written: ``${HF_TOKEN}`` is allowed, a token is not."""
    value = none_word(value)
    match = PLACEHOLDER.fullmatch(value.strip()) if isinstance(value, str) else None
    if value is None or (match and not match.group(2)):
        return value
    raise ValueError(
        "expected a placeholder such as ${HF_TOKEN}, got a literal value (not shown); secrets are "
        "read from the environment and never written: export the variable and name it here"
    )


def parse_consolidated(value: Any) -> Any:
    """``true`` means every checkpoint, ``false`` and ``none`` mean never."""
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        value = value.strip().lower() == "true"
    if isinstance(value, bool):
        return "every" if value else "never"
    return none_word(value) or "never"


def parse_off(value: Any) -> Any:
    """YAML 1.1 reads an unquoted ``off`` as false."""
    return "off" if value is False else value


@dataclass(frozen=True)
class NodeRange:
    """How many nodes a job may have: ``min`` to ``max``, both included; equal for a fixed number.

    Raises:
        ValueError: not ``1 <= min <= max``.
    """

    min: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max:
            raise ValueError(f"expected 1 <= min <= max, got {self.min} and {self.max}")

    def __str__(self) -> str:
        return str(self.max) if self.fixed else f"{self.min}-{self.max}"

    @property
    def fixed(self) -> bool:
        """Whether it is one number."""
        return self.min == self.max

    def plus(self, spares: int) -> NodeRange:
        """The same range with so many nodes more at both ends."""
        return NodeRange(self.min + spares, self.max + spares)

    def as_written(self) -> int | str:
        """``4`` or ``"2-4"``, as configuration files and sbatch's ``--nodes`` have it."""
        return self.max if self.fixed else str(self)


def parse_nodes(value: Any) -> Any:
    """A number of nodes, or a range of it (``2-4``); see sbatch(1), ``--nodes``.

    Raises:
        PydanticCustomError: it is neither; the caller says what is allowed.
    """
    if isinstance(value, NodeRange):
        return value
    text = "" if isinstance(value, bool) else str(value).strip()
    match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", text)
    if match:
        least, most = int(match[1]), int(match[2] or match[1])
        if 1 <= least <= most <= MAX_NODES:
            return NodeRange(least, most)
    raise PydanticCustomError("nodes", "neither a number of nodes nor a range")


NodeCount = Annotated[
    NodeRange,
    BeforeValidator(parse_nodes),
    PlainSerializer(NodeRange.as_written),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_NODES},
                {"type": "string", "pattern": r"^\s*\d+\s*(-\s*\d+)?\s*$", "examples": ["2-4"]},
            ]
        }
    ),
]
"""A number of nodes or a range of it."""

DurationS = Annotated[
    int,
    BeforeValidator(parse_duration_s),
    PlainSerializer(format_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "description": "minutes"},
                {
                    "type": "string",
                    "pattern": r"^\s*((\d+-)?\d+(:\d+){0,2}|\d+(\.\d+)?\s*[A-Za-z]+"
                    r"|[A-Za-z]+)\s*$",
                },
            ]
        }
    ),
]
"""Seconds; read from any of Slurm's spellings, written back as [D-]HH:MM:SS."""

_DTYPES = ["float32", "bfloat16", "float16"]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    BeforeValidator(parse_dtype),
    WithJsonSchema(
        {"enum": [*_DTYPES, *(f"torch.{one}" for one in _DTYPES), "fp32", "bf16", "fp16"]}
    ),
]
Consolidated = Annotated[
    Literal["never", "final", "every"],
    BeforeValidator(parse_consolidated),
    WithJsonSchema({"enum": ["never", "final", "every", True, False]}),
]
SpikeAction = Annotated[
    Literal["off", "warn", "skip", "rollback"],
    BeforeValidator(parse_off),
    WithJsonSchema({"enum": ["off", "warn", "skip", "rollback", False]}),
]
PreflightMode = Annotated[
    Literal["off", "quick", "full"],
    BeforeValidator(parse_off),
    WithJsonSchema({"enum": ["off", "quick", "full", False]}),
]


def parse_interval(value: Any) -> Any:
    """``Auto`` is ``auto``."""
    value = none_word(value)
    return "auto" if isinstance(value, str) and value.strip().lower() == "auto" else value


EverySteps = Annotated[
    Annotated[int, Field(ge=1)] | Literal["auto"] | None, BeforeValidator(parse_interval)
]
"""Steps between two of something, ``auto``, or None for never."""
OptionalInt = Annotated[int | None, BeforeValidator(none_word)]
OptionalStr = Annotated[str | None, BeforeValidator(none_word)]
Secret = Annotated[
    str | None,
    BeforeValidator(require_placeholder),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^\$\{[^{}]+\}$"}, {"type": "null"}]}),
]
"""A ``${VAR}`` placeholder: kept as it is in every file, resolved in the ranks only."""


_Value = TypeVar("_Value")


def key(default: _Value, doc: str, *, spelled: tuple[str, ...] = (), **options: Any) -> _Value:
    """A key of a section: its default, its documentation, all its spellings, pydantic's limits."""
    if spelled:
        options["validation_alias"] = AliasChoices(*spelled)
    field: _Value = Field(default, description=doc, **options)
    return field


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )


class TargetSection(Section):
    """A section that names a component by import path; its other keys are that component's."""

    model_config = ConfigDict(extra="allow")

    @property
    def extra(self) -> dict[str, Any]:
        """Keyword arguments meant for the component itself."""
        return dict(self.__pydantic_extra__ or {})
