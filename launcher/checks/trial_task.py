"""One rank of a trial; torch is imported only after its files can be written."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

from submitrain.config.resolve import load_resolved
from submitrain.launcher.worker.run import context_of, end_with_parent
from submitrain.launcher.worker.stacks import class_name, is_victim
from submitrain.preflight_results import RankReport
from submitrain.signals import StopFlag
from submitrain.train.context import leave


def main() -> None:
    """Run the trial; the exit code is 0 when this rank went through all of it."""
    end_with_parent(os.environ)
    folder, timeout_s = Path(sys.argv[1]), int(sys.argv[2])
    context = context_of(os.environ, StopFlag())
    config = load_resolved(context.run_dir.config, os.environ)
    trial = importlib.import_module("submitrain.train.distributed.trial")
    try:
        trial.run_trial(context, config, folder, timeout_s)
    except BaseException as error:
        sys.stderr.write(traceback.format_exc())
        report = RankReport.read(folder, context.rank, trial.host_name())
        report.stage = report.stage or "start"
        report.error = f"{class_name(error)}: {error}"[:500]
        report.victim = is_victim(error)
        report.write(folder)
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
