"""What a cluster leaves on disk so that another process can find, use and stop it."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.conf import Site
from tests.cluster.options import ClusterOptions, PreemptMode
from tests.cluster.process import ProcessId, is_alive

STATE_FILE = "state.json"
_LONGEST_FOLDER = 70


@dataclass(frozen=True)
class ClusterState:
    """Everything needed to take over a running cluster."""

    options: ClusterOptions
    site: Site
    owner: ProcessId | None
    """The process that stops it at its end; None: it runs until somebody says `down`."""
    daemons: dict[str, ProcessId | None]

    @property
    def abandoned(self) -> bool:
        """Whether its owner died without stopping it."""
        return self.owner is not None and not is_alive(self.owner)


def parent_folder() -> Path:
    """Return the folder of this user's clusters: in XDG_RUNTIME_DIR, or in the temporary folder.

    Unix sockets have short paths (108 bytes, unix(7)): a long temporary folder gives way to /tmp.
    """
    name = f"submitrain-slurm-{os.getuid()}"
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(os.fsencode(base / name)) > _LONGEST_FOLDER:
        base = Path("/tmp")
    return base / name


def write_state(state: ClusterState) -> None:
    """Write the state in one step, so that a reader never sees half of it."""
    target = state.site.root / STATE_FILE
    draft = target.with_suffix(".tmp")
    draft.write_text(json.dumps(dataclasses.asdict(state), default=str, indent=1) + "\n")
    draft.replace(target)


def read_state(root: Path) -> ClusterState | None:
    """Return the state of the cluster in this folder, None if there is none (any more)."""
    try:
        raw = json.loads((root / STATE_FILE).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    options = {**raw["options"], "preempt_mode": PreemptMode(raw["options"]["preempt_mode"])}
    for name in ("accounts", "extra_slurm_conf"):
        options[name] = tuple(options[name])
    site = {**raw["site"], "root": root, "slurmd_ports": tuple(raw["site"]["slurmd_ports"])}
    daemons = {name: _process(one) for name, one in raw["daemons"].items()}
    return ClusterState(ClusterOptions(**options), Site(**site), _process(raw["owner"]), daemons)


def list_clusters() -> Iterator[Path]:
    """Yield the folders of this user's clusters, oldest first."""
    folders = [path.parent for path in parent_folder().glob(f"*/{STATE_FILE}")]
    yield from sorted(folders, key=_age)


def _age(root: Path) -> float:
    try:
        return root.stat().st_mtime
    except OSError:
        return 0.0


def _process(raw: dict[str, int] | None) -> ProcessId | None:
    return None if raw is None else ProcessId(raw["pid"], raw["start_ticks"])
