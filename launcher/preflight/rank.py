"""One rank of a trial: ``python -m launcher.preflight.rank FOLDER SECONDS``. No torch here."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

from launcher.blame import class_name, is_victim
from launcher.rankrun import context_of, end_with_parent
from train.config.load import load_resolved
from train.context import leave
from train.stop import StopFlag


def main() -> None:
    """Run the trial; the exit code is 0 when this rank went through all of it."""
    end_with_parent(os.environ)
    folder, timeout_s = Path(sys.argv[1]), int(sys.argv[2])
    context = context_of(os.environ, StopFlag())
    config = load_resolved(context.run_dir.config, os.environ)
    trial = importlib.import_module("train.trial")
    try:
        trial.run_trial(context, config, folder, timeout_s)
    except BaseException as error:
        sys.stderr.write(traceback.format_exc())
        seen = trial.read_seen(folder, context)
        seen.error = f"{class_name(error)}: {error}"[:500]
        seen.victim = is_victim(error)
        trial.write_seen(folder, seen)
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
