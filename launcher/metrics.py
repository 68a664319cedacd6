"""The numbers of a run's steps: a plain list, which shows itself as a table where pandas is."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from train.errors import UserError

if TYPE_CHECKING:
    import pandas

_FIRST = (
    *("step", "epoch", "loss", "grad_norm", "lr", "tokens", "tokens_per_s", "step_s"),
    *("data_wait_s", "mem_bytes", "mfu", "total_tokens", "label_tokens", "position", "attempt"),
)
_ENVELOPE = frozenset({"v", "kind", "rank", "job_id", "loss_hex", "grad_norm_hex"})
"""What every line carries, and exact values: in the list, not in the table."""


class StepEvents(list[dict[str, Any]]):
    """Step events in order of step: a list as any other; ``frame()`` makes a table of it."""

    def frame(self) -> pandas.DataFrame:
        """A pandas DataFrame indexed by step; ``time`` is UTC, "nan" and "inf" are numbers.

        Raises:
            UserError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise UserError(
                "metrics: frame() needs pandas, which is not installed: pip install pandas, or "
                "take the list itself, one mapping for every step"
            )
        import pandas

        frame = pandas.DataFrame([_numbers(event) for event in self], columns=_columns(self))
        if "t" in frame:
            frame.insert(0, "time", pandas.to_datetime(frame.pop("t"), unit="s", utc=True))
        return frame.set_index("step") if "step" in frame else frame

    def _repr_html_(self) -> str | None:
        """The table, in notebooks; None (a plain list) where pandas is not installed."""
        if not self or find_spec("pandas") is None:
            return None
        shown: str | None = self.frame()._repr_html_()
        return shown


def _columns(events: Iterable[dict[str, Any]]) -> list[str]:
    """What the events carry: the usual fields first, others as they come."""
    found = dict.fromkeys(key for event in events for key in event if key not in _ENVELOPE)
    return [*(name for name in _FIRST if name in found), *(n for n in found if n not in _FIRST)]


def _numbers(event: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: its name becomes the number again."""
    return {
        key: float(value) if value in ("nan", "inf", "-inf") else value
        for key, value in event.items()
        if key not in _ENVELOPE
    }
