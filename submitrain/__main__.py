"""``python -m submitrain``: the launcher's command line, whatever lies in the working directory."""

from __future__ import annotations

import sys
from pathlib import Path


def prefer_installed() -> None:
    """``python -m`` puts the working directory first: a user's ``queue.py`` there must not win."""
    here, root = Path.cwd(), Path(__file__).resolve().parent.parent
    if sys.path and Path(sys.path[0] or ".").resolve() == here != root:
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    prefer_installed()
    from submitrain.launcher.cli.main import main

    sys.exit(main())
