"""`python -m tests.cluster`: a private Slurm cluster on this machine, to try things out.

eval "$(python -m tests.cluster up)"     start one and point this shell to it
python -m tests.cluster status           what runs
python -m tests.cluster down             stop it
python -m tests.cluster shell            start one, open a shell, stop it when the shell ends
python -m tests.cluster shell -- make x  the same with a command instead of a shell
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.client import clean_environment
from tests.cluster.cluster import SlurmCluster, remove_abandoned_clusters
from tests.cluster.daemon import SlurmClusterError
from tests.cluster.options import ClusterOptions, PreemptMode
from tests.cluster.state import list_clusters


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = _parser().parse_args(argv)
    commands = {"up": _up, "down": _down, "status": _status, "shell": _shell}
    try:
        return commands[arguments.command](arguments)
    except SlurmClusterError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_options(commands.add_parser("up", help="start a cluster that runs until `down`"))
    shell = commands.add_parser("shell", help="start a cluster for one shell or command")
    _add_options(shell)
    shell.add_argument("argv", nargs="*", metavar="-- COMMAND", help="instead of a shell")
    commands.add_parser("status", help="list the clusters of this user")
    down = commands.add_parser("down", help="stop the one SLURM_CONF points to, or the only one")
    down.add_argument("folder", nargs="?", type=Path, help="the cluster's folder, as status says")
    down.add_argument("--all", action="store_true", help="stop every cluster that `up` started")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    default = ClusterOptions()
    parser.add_argument("--nodes", type=int, default=default.nodes)
    parser.add_argument("--gpus", type=int, default=default.gpus_per_node, help="of each node")
    parser.add_argument("--cpus", type=int, default=default.cpus, help="of each node")
    parser.add_argument("--memory-mb", type=int, default=default.memory_mb, help="of each node")
    parser.add_argument("--no-accounting", action="store_true", help="no slurmdbd, no MariaDB")
    parser.add_argument("--preempt-notice", type=int, metavar="SECONDS", help="default: no notice")
    parser.add_argument(
        "--preempt-mode", type=PreemptMode, choices=list(PreemptMode), default=default.preempt_mode
    )
    parser.add_argument("--kill-wait", type=int, metavar="SECONDS", default=default.kill_wait_s)


def _options(arguments: argparse.Namespace) -> ClusterOptions:
    try:
        return ClusterOptions(
            nodes=arguments.nodes,
            cpus=arguments.cpus,
            memory_mb=arguments.memory_mb,
            gpus_per_node=arguments.gpus,
            accounting=not arguments.no_accounting,
            preempt_notice_s=arguments.preempt_notice,
            preempt_mode=arguments.preempt_mode,
            kill_wait_s=arguments.kill_wait,
        )
    except ValueError as error:
        raise SlurmClusterError(str(error)) from error


def _up(arguments: argparse.Namespace) -> int:
    cluster = SlurmCluster.start(_options(arguments), detached=True)
    for name, value in cluster.env.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"# stop it: python -m tests.cluster down {cluster.site.root}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    remove_abandoned_clusters()
    for root in _chosen(arguments):
        SlurmCluster.attach(root).stop()
        print(f"stopped {root}")
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Path]:
    """Return the folders `down` means; a cluster that a test run owns only when it is named."""
    if arguments.folder is not None:
        return [arguments.folder]
    detached = [root for root in list_clusters() if SlurmCluster.attach(root).owner is None]
    if arguments.all:
        return detached
    current = Path(os.environ.get("SLURM_CONF", "/none/etc/slurm.conf")).parent.parent
    if current in detached:
        return [current]
    if len(detached) > 1:
        names = "\n".join(f"    {root}" for root in detached)
        raise SlurmClusterError(f"several clusters run; name one, or say --all:\n{names}")
    return detached


def _status(arguments: argparse.Namespace) -> int:
    del arguments
    for root in list_clusters():
        cluster = SlurmCluster.attach(root)
        owner = "until `down`" if cluster.owner is None else f"owned by process {cluster.owner.pid}"
        ended = [name for name, daemon in cluster.daemons.items() if not daemon.alive]
        print(f"{root}  {owner}  {len(cluster.processes())} processes")
        print(f"    not running: {', '.join(ended) or 'none'}")
        states = cluster.run("sinfo", "--noheader", "--format=%P %D %T %N", check=False)
        print("".join(f"    {line}\n" for line in states.splitlines()), end="")
    return 0


GREETING = """A private Slurm, until you leave this shell (`exit`). For example:
  sinfo
  python -m launcher configs/quickstart.yaml slurm.nodes=2 slurm.ntasks_per_node=1 --detach
  python -m launcher status latest
How to preempt it: docs/test-cluster.md"""


def _shell(arguments: argparse.Namespace) -> int:
    with SlurmCluster.start(_options(arguments)) as cluster:
        if not arguments.argv:
            print(GREETING)
        command = arguments.argv or [os.environ.get("SHELL", "/bin/sh")]
        env = clean_environment(cluster.site.slurm_conf)
        return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
