"""Runs in notebooks: real kernels, interrupted and restarted, and never a run that ends with them.

The ranks are those of ``tests/toy_rank.py``; ``test_notebooks.py`` runs the notebooks themselves.
"""

from __future__ import annotations

import math
import os
import queue
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jupyter_client.manager import KernelManager

from submitrain.errors import UserError
from submitrain.events import append_line
from submitrain.html.templates import SCOPE
from submitrain.launcher import Run, launch
from submitrain.launcher.notebook.card import NO_LONGER, card
from submitrain.launcher.notebook.chart import RunHistory
from submitrain.launcher.run import StepEvents
from submitrain.status import RunState
from tests.local.test_launch import SLOW, config, project, wait_for

__all__ = ["project"]
KERNEL_S = 120.0


@dataclass
class Notebook:
    """A kernel, and what its cells put out."""

    manager: KernelManager
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def connect(self) -> None:
        """Talk to the kernel that runs now."""
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=KERNEL_S)

    def start(self, code: str) -> str:
        """Begin a cell; returns its message's id."""
        self.outputs = []
        return str(self.client.execute(code))

    def cell(self, code: str) -> str:
        """Run a cell to its end; returns all that it put out."""
        return self.finish(self.start(code))

    def finish(self, message: str) -> str:
        """Wait for the end of a cell; returns all that it put out."""
        deadline = time.monotonic() + KERNEL_S
        while not self.take(message):
            assert time.monotonic() < deadline, self.text
        return self.text

    def take(self, message: str) -> bool:
        """Take one output of a cell, if there is one; whether the cell has ended."""
        try:
            found = self.client.get_iopub_msg(timeout=0.2)
        except queue.Empty:
            return False
        if found["parent_header"].get("msg_id") != message:
            return False
        self.outputs.append(found)
        return bool(found["content"].get("execution_state") == "idle")

    @property
    def text(self) -> str:
        """Everything that was put out, HTML included."""
        return "\n".join(
            str(found["content"].get("text") or found["content"].get("data") or "")
            + "\n".join(found["content"].get("traceback", []))
            for found in self.outputs
        )

    def kinds(self) -> list[str]:
        """Kinds of the outputs, in order."""
        return [str(found["msg_type"]) for found in self.outputs]


@pytest.fixture
def notebook(project: Path) -> Iterator[Notebook]:
    """A notebook in the user's project."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(project), env={**os.environ, "JUPYTER_PLATFORM_DIRS": "1"})
    opened = Notebook(manager)
    opened.connect()
    yield opened
    opened.client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_run_outlives_the_interrupt_and_the_restart_of_its_kernel(
    project: Path, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**config(project), "runs_dir": "runs"}
    begin = f"import os; os.environ['TOY_STEP_S'] = '{SLOW}'; from launcher import Run, launch\n"
    shown = notebook.cell(f"{begin}run = launch({settings!r}, step_scheduler__max_steps=400)\nrun")
    assert f'class="{SCOPE}"' in shown
    assert "step <b>0</b> of 400" in shown

    watching = notebook.start("run.watch(interval_s=0.2)")
    wait_for(lambda: notebook.take(watching) or notebook.kinds().count("update_display_data") > 2,
             "a display that is updated")  # fmt: skip
    assert notebook.kinds().count("display_data") == 1
    notebook.manager.interrupt_kernel()
    assert NO_LONGER in notebook.finish(watching)
    assert "Traceback" not in notebook.text

    notebook.client.stop_channels()
    notebook.manager.restart_kernel(now=True)
    notebook.connect()
    found = notebook.cell("from launcher import Run\nrun = Run.open('latest')\nrun")
    assert "running</span>" in found
    assert "<polyline" in found
    table = notebook.cell("run.metrics()")
    assert "<table" in table
    assert "tokens_per_s" in table
    assert "from " in notebook.cell("run.tail(3)")
    assert "image/svg+xml" in notebook.cell("run.plot()")

    wrong = notebook.cell("from launcher import launch\nlaunch({'slurm': {'nodes': 0}})")
    assert "ConfigError: slurm.nodes: expected an integer >= 1" in wrong
    assert "launch(" not in wrong  # one line, no way through our code

    last = notebook.cell("_ = run.cancel()\nrun.watch(interval_s=0.2)")
    assert "● cancelled" in last
    assert Run.open("latest").status().state is RunState.CANCELLED


def test_overrides_may_be_keywords_with_dots_or_underscores(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeper = {"resilience__hang__step_s": 77, "optimizer___target_": "torch.optim.Adam"}
    run = launch(config(project), step_scheduler__max_steps=3, **deeper, **{"optimizer.lr": 1e-4})
    assert run.wait(KERNEL_S).total_steps == 3
    text = run.run_dir.config.read_text()
    assert all(
        line in text for line in ("lr: 0.0001", "step_s: 77", "_target_: torch.optim.Adam\n")
    )
    with pytest.raises(UserError, match=r"did you mean lr\?.*\(argument optimizer__lrr\)"):
        launch(config(project), optimizer__lrr=1e-4)


def test_watching_outside_a_notebook_prints_what_happens(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(config(project), overrides=["step_scheduler.max_steps=5"]).watch()
    assert "step 1  loss 4.0000" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected interval_s > 0"):
        Run.open("latest").watch(interval_s=0)


def test_the_card_of_a_failed_run_says_why_and_is_safe_to_show(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_DATA_ERROR", "1")
    run = launch(config(project), wait=True)
    wait_for((run.run_dir.reports / "report.html").exists, "the report, written after the end")
    html = run._repr_html_()
    assert "✗ failed" in html
    assert "dataset: expected at least one sample, got none (nowhere.jsonl)" in html
    [link] = re.findall(r'href="([^"]+report\.html)"', html)
    assert (project / link).is_file()
    hostile = "<script>alert(1)</script>"
    status = run.status()
    object.__setattr__(status, "why", hostile)
    assert hostile not in card(status, RunHistory(run.folder).read(), here=project)


def test_the_cards_style_reaches_nothing_outside_it(project: Path) -> None:
    html = launch(config(project), wait=True)._repr_html_()
    style = html.partition("<style>")[2].partition("</style>")[0]
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]+\{", "", style))
    assert len(selectors) > 15
    for selector in ",".join(selectors).split(","):
        assert f".{SCOPE}" in selector, selector
    body = html.partition("</style>")[2]
    assert ElementTree.fromstring(f"<div>{body}").find(".//a") is not None
    assert not re.search(r"https?://|<script|@import|url\(", html)


def test_a_plot_is_a_whole_svg_file_and_marks_where_an_attempt_went_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = launch(config(project), wait=True), launch(config(project), wait=True)
    line = {"kind": "resume", "t": time.time(), "rank": 0, "attempt": 1, "step": 7}
    append_line(run.run_dir.events(0), line)
    path = run.plot("loss", other).save(project / "loss.svg")
    names = [title.text for title in ElementTree.parse(path).iter() if title.tag.endswith("title")]
    assert "attempt 1 resumed after step 7" in names
    assert other.run_id.rpartition("-")[0] in path.read_text()
    with pytest.raises(UserError, match="expected one of loss, lr, tokens_per_s"):
        run.plot("speed")
    with pytest.raises(UserError, match="has not recorded a step with grad_norm yet"):
        run.plot("grad_norm")


def test_metrics_are_a_list_and_a_table_with_real_numbers(project: Path) -> None:
    run = launch(config(project), wait=True)
    found = run.metrics()
    assert isinstance(found, list)
    assert [event["step"] for event in found] == list(range(1, 21))
    frame = found.frame()
    assert list(frame.index) == list(range(1, 21))
    assert frame.loss.iloc[-1] == 0.2
    assert str(frame.time.dt.tz) == "UTC"
    odd = StepEvents([{"step": 1, "loss": "nan"}, {"step": 2, "loss": "inf"}]).frame()
    assert math.isnan(odd.loss[1])
    assert math.isinf(odd.loss[2])


def test_without_pandas_metrics_are_a_plain_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submitrain.launcher.run.find_spec", lambda _: None)
    found = StepEvents([{"step": 1}])
    assert found._repr_html_() is None
    with pytest.raises(UserError, match="needs pandas, which is not installed"):
        found.frame()


def test_a_view_that_is_kept_reads_only_what_is_new_and_no_late_line(tmp_path: Path) -> None:
    history = RunHistory(tmp_path)
    (tmp_path / "events").mkdir()
    path = tmp_path / "events" / "rank00000.jsonl"

    def step(number: int, attempt: int, loss: float) -> None:
        event = {"kind": "step", "t": float(number), "attempt": attempt, "step": number}
        append_line(path, {**event, "loss": loss})

    step(1, 1, 3.0)
    assert history.read().curves.values["loss"] == {1: 3.0}
    step(2, 2, 2.0)
    step(2, 1, 9.0)
    assert history.read().curves.values["loss"] == {1: 3.0, 2: 2.0}
