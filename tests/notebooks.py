"""Runs the notebooks from top to bottom in fresh kernels; `python -m tests.notebooks` stores them.

Outputs are stored, so that the repository's web page shows what a notebook does; the tests run all
of them anew. What differs between two runs of a notebook (times, process ids) is not compared.

python -m tests.notebooks              run all and store their outputs
python -m tests.notebooks 01 --html D  run one and write its page into folder D (needs nbconvert)
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLACE = Path("/tmp/submitrain")
"""Where stored outputs come from: no path of the machine that wrote them."""
CELL_TIMEOUT_S = 500


def copy_repository(target: Path) -> Path:
    """A checkout of the working tree's tracked and new files, without runs and caches."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


def execute(path: Path, environ: Mapping[str, str] | None = None) -> Any:
    """The notebook with its outputs; it runs in its own folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    root = path.parents[1]
    paths = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses ipywidgets
    }
    client.execute(env={**os.environ, **(environ or {}), **paths})
    return notebook


def outputs_of(notebook: Any) -> str:
    """Everything that its cells put out, HTML included."""
    return "\n".join(
        str(output.get("text") or output.get("data", {}))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def main() -> int:
    """Run and store."""
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of their names; default: all")
    parser.add_argument("--html", type=Path, metavar="DIR", help="write pages, too")
    options = parser.parse_args()
    with PLACE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(PLACE, ignore_errors=True)
        copy_repository(PLACE)
        _store(options)
    return 0


def _store(options: argparse.Namespace) -> None:
    for path in NOTEBOOKS:
        if options.names and not path.name.startswith(tuple(options.names)):
            continue
        print(path.name, flush=True)
        notebook = execute(PLACE / "notebooks" / path.name, {"COLUMNS": "110"})
        notebook.metadata = nbformat.read(path, as_version=4).metadata
        nbformat.write(notebook, path)
        if options.html:
            from nbconvert import HTMLExporter

            options.html.mkdir(parents=True, exist_ok=True)
            page, _ = HTMLExporter().from_notebook_node(notebook)
            (options.html / f"{path.stem}.html").write_text(page)


if __name__ == "__main__":
    sys.exit(main())
