"""``python -m launcher``"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import submitrain.__main__ as start

    start.prefer_installed()
    from submitrain.launcher.cli.main import main

    sys.exit(main())
