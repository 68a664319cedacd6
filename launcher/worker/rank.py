"""One rank: ``python -m submitrain.launcher.worker.rank``, started for every GPU by the supervisor.

The first thing it does is to install the signal handlers: a warning that arrives while torch is
being imported must not kill it. Then it learns who it is, says so, reads the configuration and
calls the training entry. Whatever goes wrong is written down as this rank's own failure record.
"""

from __future__ import annotations

from submitrain.signals import StopFlag, install_handlers


def main() -> None:
    """Run this process's rank to its end; never returns."""
    flag = StopFlag()
    install_handlers(flag)

    from submitrain.launcher.worker.run import run_rank
    from submitrain.train.context import leave

    leave(run_rank(flag))


if __name__ == "__main__":
    main()
