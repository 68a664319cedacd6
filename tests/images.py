"""An image for the stand-in of Apptainer in ``tests/programs/bin``: this machine's own Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

BIN = Path(__file__).with_name("programs") / "bin"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc")


def make_image(folder: Path, **environment: str) -> Path:
    """A folder that the stand-in runs: the system, this Python with its packages, nothing else."""
    (folder / "root").mkdir(parents=True)
    packages = [path for path in sys.path if "site-packages" in path]
    wanted = [Path(path) for path in (*_SYSTEM, sys.prefix, sys.base_prefix, *packages)]
    found = [path for path in dict.fromkeys(wanted) if os.path.lexists(path)]
    tops = [path for path in found if not set(path.parents) & set(found)]
    (folder / "brings").write_text("".join(f"{path}\n" for path in tops))
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    lines = {"PATH": path, **environment}
    (folder / "environment").write_text("".join(f"{k}={v}\n" for k, v in lines.items()))
    return folder
