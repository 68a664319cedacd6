"""``python -m monitor``"""

from __future__ import annotations

import sys
from pathlib import Path


def _prefer_own_packages() -> None:
    """``python -m`` puts the working directory first: a user's ``train.py`` there must not win."""
    here, root = Path.cwd(), Path(__file__).resolve().parent.parent
    if sys.path and Path(sys.path[0] or ".").resolve() == here != root:
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    _prefer_own_packages()
    from monitor.cli import main

    sys.exit(main())
