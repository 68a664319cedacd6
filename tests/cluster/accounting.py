"""The private MariaDB and the accounts, users and QOS of a cluster with accounting."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from subprocess import PIPE, STDOUT

from tests.cluster.conf import CLUSTER_NAME, Site
from tests.cluster.daemon import SlurmClusterError
from tests.cluster.options import ClusterOptions

_SMALL_DATABASE = (
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=32M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--skip-log-bin",
)


def create_database(site: Site, env: Mapping[str, str]) -> None:
    """Create the empty data folder; takes about a second. Raises SlurmClusterError."""
    command = [
        "mariadb-install-db",
        "--no-defaults",
        f"--user={site.user}",
        *_folders(site),
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
        *_SMALL_DATABASE,
    ]
    _check(subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False))


def database_command(site: Site) -> tuple[str, ...]:
    """Return the command that serves the database on its socket and on no port."""
    return (
        "mariadbd",
        "--no-defaults",
        f"--user={site.user}",
        *_folders(site),
        f"--socket={site.database_socket}",
        f"--pid-file={site.root}/run/mariadbd.pid",
        "--skip-networking",
        "--innodb-lock-wait-timeout=900",
        *_SMALL_DATABASE,
    )


def create_accounts(options: ClusterOptions, user: str, env: Mapping[str, str]) -> None:
    """Create the cluster, the accounts, the user and the QOS `high`, which preempts `normal`.

    slurmdbd has to run already; do it before slurmctld starts, which then reads it all at once.
    Raises SlurmClusterError.
    """
    accounts = ",".join(options.accounts)
    phases = [
        [
            "add qos high set preempt=normal priority=1000",
            f"modify qos normal set gracetime={options.preempt_notice_s or 0}",
        ],
        [f"add cluster {CLUSTER_NAME} set qos=normal,high defaultqos=normal"],
        [f"add account {accounts} cluster={CLUSTER_NAME}"],
        [f"add user {user} account={accounts} defaultaccount={options.accounts[0]}"],
    ]
    for commands in phases:
        _run_together([("sacctmgr", "-i", "-Q", *command.split()) for command in commands], env)


def _run_together(commands: list[tuple[str, ...]], env: Mapping[str, str]) -> None:
    """Run commands at once: sacctmgr mostly waits (40 ms for each message, tcp(7) delayed ack)."""
    running = [
        subprocess.Popen(argv, env=dict(env), stdout=PIPE, stderr=STDOUT, text=True)
        for argv in commands
    ]
    done = []
    for child in running:
        output, _ = child.communicate()
        done.append(subprocess.CompletedProcess(child.args, child.returncode, output, ""))
    for result in done:
        _check(result)


def _folders(site: Site) -> tuple[str, str]:
    """Return the folders; a starting MariaDB deletes everybody's temporary tables in its tmpdir."""
    return f"--datadir={site.root}/db", f"--tmpdir={site.root}/db-tmp"


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode != 0:
        raise SlurmClusterError(
            f"`{' '.join(done.args)}` exited {done.returncode}\n{done.stdout}{done.stderr}"
        )
