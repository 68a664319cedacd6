"""Charts of runs in notebooks: the loss on a run's card, and ``Run.plot()`` of several runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from submitrain.errors import UserError
from submitrain.events import EventTail, Kind
from submitrain.html.charts import Series, line_chart
from submitrain.html.templates import svg_document
from submitrain.launcher.cli.progress import notable
from submitrain.monitor.report.read import Curves, thin
from submitrain.run_folder import RunDir

NOTES = 6
"""Remarkable events that are kept, the newest."""
_SHOWN_ELSEWHERE = frozenset({Kind.VALIDATION, Kind.CHECKPOINT, Kind.FAILURE})
"""In the curve, in the status, or in what the attempt's end says."""


@dataclass
class RunHistory:
    """Curves, remarkable events and where attempts resumed; each read takes only what is new."""

    folder: Path
    curves: Curves = field(default_factory=Curves)
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=NOTES))
    resumed: dict[int, int] = field(default_factory=dict)
    """Step from which an attempt resumed, to that attempt."""

    def __post_init__(self) -> None:
        run_dir = RunDir(self.folder)
        self._tails = [EventTail(path, 0) for path in (run_dir.events(0), run_dir.attempts)]
        self._newest = [0, 0]

    def read(self) -> RunHistory:
        """Take in what was written since the last time."""
        found = [event for index in range(len(self._tails)) for event in self._new(index)]
        for event in sorted(found, key=lambda event: float(event.get("t") or 0.0)):
            self._take(event)
        return self

    def _new(self, index: int) -> list[dict[str, Any]]:
        """New events of one file, without those that a fenced attempt wrote too late."""
        kept = []
        for event in self._tails[index].read():
            attempt = event.get("attempt")
            number = attempt if isinstance(attempt, int) else self._newest[index]
            if number >= self._newest[index]:
                self._newest[index] = number
                kept.append(event)
        return kept

    def _take(self, event: dict[str, Any]) -> None:
        self.curves.take(event)
        if event["kind"] == Kind.RESUME and isinstance(event.get("step"), int):
            self.resumed[event["step"]] = int(event.get("attempt") or 0)
        if event["kind"] not in _SHOWN_ELSEWHERE and (line := notable(event)):
            self.notes.append(line)


MOST_POINTS = 500
_NAMES = {
    "loss": "loss (nats per label token)",
    "lr": "learning rate",
    "tokens_per_s": "tokens/s",
    "mem_bytes": "memory of rank 0 (GiB)",
    "grad_norm": "gradient norm",
}


@dataclass(frozen=True)
class Plot:
    """A chart; ``svg`` is a whole file."""

    title: str
    svg: str = field(repr=False)

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write the SVG file; returns its path."""
        target = Path(path)
        target.write_text(self.svg)
        return target


def plot(folder: Path, others: Sequence[Path], name: str) -> Plot:
    """One field of step events by step; the other runs as broad pale bands beneath.

    Raises:
        UserError: there is no such field, or no step has been recorded yet.
    """
    if name not in _NAMES:
        raise UserError(f"plot: expected one of {', '.join(_NAMES)}, got {name!r}")
    beneath = [
        Series(_short(other), _points(RunHistory(other).read(), name), color=index, wide=True)
        for index, other in enumerate(others, start=1)
    ]
    history = RunHistory(folder).read()
    own = series(history, name, _short(folder) if others else "training")
    drawn = [one for one in [*beneath, *own] if one.points]
    title = f"{_NAMES[name]} by step"
    chart = line_chart(drawn, x_label="step", y_label=_NAMES[name], title=title)
    if not chart:
        raise UserError(f"plot: {folder.name} has not recorded a step with {name} yet")
    return Plot(title, svg_document(chart))


def _short(folder: Path) -> str:
    """The run's name and start, without the digest: room in a legend is small."""
    return folder.name.rpartition("-")[0] or folder.name


def loss_chart(history: RunHistory) -> Markup:
    """Training and validation loss as inline SVG; empty before the first step."""
    return line_chart(
        series(history, "loss", "training"), x_label="step", y_label=_NAMES["loss"], title="Loss"
    )


def series(history: RunHistory, name: str, label: str) -> list[Series]:
    """The curve with a mark wherever an attempt resumed; with the loss, that of validation."""
    points = _points(history, name)
    values = history.curves.values[name]
    marks = [
        (float(at), values[at], f"attempt {attempt} resumed after step {step}")
        for step, attempt in sorted(history.resumed.items())
        if (at := step if step in values else step + 1) in values
    ]
    found = [Series(label, points, 0, marks=marks)]
    if name == "loss" and history.curves.values["validation"]:
        validation = "validation" if label == "training" else f"{label}: validation"
        found.append(Series(validation, _points(history, "validation"), 1, dash=1))
    return [one for one in found if one.points]


def _points(history: RunHistory, name: str) -> list[tuple[float, float]]:
    return thin(history.curves.points(name), MOST_POINTS)
