"""``python -m monitor``"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import submitrain.__main__ as start

    start.prefer_installed()
    from submitrain.monitor.cli import main

    sys.exit(main())
