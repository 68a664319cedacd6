"""``python -m launcher``"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from submitrain.command_line import prefer_installed

    prefer_installed()
    from submitrain.launcher.cli.main import main

    sys.exit(main())
