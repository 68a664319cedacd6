"""``python -m monitor``"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from submitrain.command_line import prefer_installed

    prefer_installed()
    from submitrain.monitor.cli import main

    sys.exit(main())
