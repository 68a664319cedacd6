"""The notebooks run from top to bottom in fresh kernels, here and on a real Slurm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from submitrain.launcher.run import Run
from submitrain.run_folder import list_runs
from tests.cluster.cluster import SlurmCluster
from tests.cluster.options import ClusterOptions, missing_packages
from tests.notebooks import NOTEBOOKS, copy_repository, execute, outputs_of

SURVIVES = "02_survive_a_fault"
FINISHED = r"(?:&#10003;|✓) finished</span>"
FACTS = {
    "01_quickstart": [
        r"2 x 1 x 2 = 4  \(local x accumulation x world\)",
        FINISHED,
        r"step <b>40</b> of 40",
        r"loss +7\.\d+ -> 6\.\d+",
        r"LlamaForCausalLM with [\d,]+ parameters",
        r"<RunState\.FINISHED: 'finished'>",
    ],
    SURVIVES: [
        r"killed rank 1, process \d+, after step \d+",
        r"attempt 1: rank_died -> restart",
        r"rank 1 \(\S+\) was killed by SIGKILL",
        r"attempt 2 (?:went on|resumed) after step \d+",
        r"40 steps, identical: True",
    ],
    "03_sweep": [
        r"Sweep scaling-sweep-\w+: finished, 2 of 2 finished",
        r"emulated, not performance",
        r"n2-r1 +finished, [\d,]+ tokens/s",
        r"Sweep rates-sweep-\w+: finished, 2 of 2 finished",
        r"image/svg\+xml",
    ],
    "04_monitor_and_cost": [
        FINISHED,
        r"(?:&#10007;|✗) failed</span>",
        r"config_error",
        r"critical: failed: ",
        r"effective +\d+\.\d %",
        r"unit +hours +cost",
        r"effective training time: \d+% of \d+ s",
        r"intact, \d+ lines in 2 ledgers",
    ],
}
"""What must be in a notebook's outputs."""
HAS_SLURM = not missing_packages(ClusterOptions())
HERE = [name for name in FACTS if name != SURVIVES or not HAS_SLURM]
"""The notebooks that run on this machine; one of them runs on Slurm where that can be."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository in another place; the notebooks share its runs folder and prepared data."""
    return copy_repository(tmp_path_factory.mktemp("notebooks"))


def check(notebook: Any, facts: list[str]) -> None:
    """Every fact is in the outputs, nothing went wrong on the way."""
    text = outputs_of(notebook)
    missing = [fact for fact in facts if not re.search(fact, text)]
    assert not missing, text[-4000:]
    assert "Traceback (most recent call last)" not in re.sub(r"evidence.*|also.*", "", text)


@pytest.mark.ranks
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", HERE)
def test_a_notebook_runs_on_this_machine(
    checkout: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    check(execute(checkout / "notebooks" / f"{name}.ipynb"), FACTS[name])
    assert {Run(folder).status().cluster for folder in list_runs(checkout / "runs")} <= {"local"}


@pytest.mark.slurm
@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_a_notebook_kills_a_rank_on_slurm_and_gets_the_same_curve(
    tmp_path: Path, slurm_cluster: SlurmCluster
) -> None:
    place = copy_repository(tmp_path / "place")
    notebook = execute(place / "notebooks" / f"{SURVIVES}.ipynb", slurm_cluster.env)
    check(notebook, FACTS[SURVIVES])
    runs = [Run(folder) for folder in list_runs(place / "runs")]
    assert [run.status().cluster for run in runs] == ["slurm", "slurm"]
    assert len(runs[-1].status().job_ids) == 1  # restarted in place: no second job


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_whole_and_tell_nothing_of_the_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stem in FACTS
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    check(notebook, FACTS[path.stem])
    text = json.dumps(notebook)
    assert not re.search(r"/(work|root|home)/", text)
    assert len(text) < 400_000
