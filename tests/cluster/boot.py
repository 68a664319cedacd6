"""Lays out the folder of a cluster and brings its daemons up in the right order."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.cluster.accounting import create_accounts, create_database, database_command
from tests.cluster.client import SlurmClient, clean_environment, wait_until
from tests.cluster.conf import Site, render_gres_conf, render_slurm_conf, render_slurmdbd_conf
from tests.cluster.daemon import Daemon, DaemonSpec, SlurmClusterError
from tests.cluster.options import ClusterOptions
from tests.cluster.ports import free_ports
from tests.cluster.state import parent_folder

_NULL_DEVICE = os.makedev(1, 3)
_SERVICES = ("munged", "mariadbd", "slurmdbd", "slurmctld")
_START_TIMEOUT_S = 60.0


def create_site(options: ClusterOptions) -> Site:
    """Create the folder of a new cluster with all its files, and return where everything is."""
    parent = parent_folder()
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="cluster-", dir=parent))
    for name in ("etc", "state", "spool", "run", "log", "dev", "db", "db-tmp"):
        (root / name).mkdir()
    controller, database, *nodes = free_ports(2 + options.nodes)
    hosts = Path("/etc/hosts").read_text()
    hosts += "".join(f"127.0.0.1 {name}\n" for name in options.node_names)
    for name in (*_SERVICES, *options.node_names):
        (root / "etc" / f"{name}.hosts").write_text(hosts)
    site = Site(
        root=root,
        host=socket.gethostname().partition(".")[0],
        user=pwd.getpwuid(os.getuid()).pw_name,
        slurmctld_port=controller,
        slurmdbd_port=database,
        slurmd_ports=tuple(nodes),
        own_hostnames=_namespaces_work(root / "etc" / "munged.hosts"),
    )
    _write_configuration(options, site)
    return site


def _namespaces_work(hosts: Path) -> bool:
    """Say whether this user may create the namespaces that give nodes their own names."""
    probe = DaemonSpec("probe", ("true",), Path(os.devnull), {}, hosts, "node1")
    return subprocess.run(probe.command(), capture_output=True, check=False).returncode == 0


def _write_configuration(options: ClusterOptions, site: Site) -> None:
    for index in range(options.gpus_per_node):
        _create_device(site.gpu_device(index))
    key = site.root / "etc" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    site.slurm_conf.write_text(render_slurm_conf(options, site))
    (site.slurm_conf.parent / "gres.conf").write_text(render_gres_conf(options, site))
    if options.accounting:
        slurmdbd_conf = site.slurm_conf.parent / "slurmdbd.conf"
        slurmdbd_conf.touch(mode=0o600)
        slurmdbd_conf.write_text(render_slurmdbd_conf(site))


def _create_device(path: Path) -> None:
    """Create a character device like /dev/null; a plain file where that is not allowed."""
    try:
        os.mknod(path, mode=0o666 | stat.S_IFCHR, device=_NULL_DEVICE)
    except PermissionError:
        path.touch()


def create_daemons(options: ClusterOptions, site: Site) -> dict[str, Daemon]:
    """Return the daemons of a cluster by name, in the order in which they start."""
    env = {**clean_environment(site.slurm_conf), "MYSQL_UNIX_PORT": str(site.database_socket)}
    commands: dict[str, tuple[str, ...]] = {"munged": _munged_command(site)}
    if options.accounting:
        commands |= {"mariadbd": database_command(site), "slurmdbd": ("slurmdbd", "-D")}
    commands["slurmctld"] = ("slurmctld", "-D")
    commands |= {name: ("slurmd", "-D", "-N", name) for name in options.node_names}
    return {
        name: Daemon(
            DaemonSpec(
                name=name,
                argv=argv,
                log=site.logs / f"{name}.log",
                env=env,
                hosts=site.hosts_file(name) if site.own_hostnames else None,
                hostname=name if site.own_hostnames and name in options.node_names else None,
            )
        )
        for name, argv in commands.items()
    }


def _munged_command(site: Site) -> tuple[str, ...]:
    return (
        "munged",
        "--foreground",
        "--force",
        f"--socket={site.munge_socket}",
        f"--key-file={site.root}/etc/munge.key",
        f"--pid-file={site.root}/run/munged.pid",
        f"--seed-file={site.root}/run/munge.seed",
        f"--log-file={site.logs}/munged.log",
        "--num-threads=4",
    )


class Boot:
    """Starts the daemons of one cluster one after the other."""

    def __init__(self, client: SlurmClient, site: Site, daemons: Mapping[str, Daemon]) -> None:
        self._client = client
        self._site = site
        self._daemons = daemons

    def start_all(self) -> None:
        """Bring everything up until all nodes are idle; SlurmClusterError quotes the logs."""
        self._daemons["munged"].start()
        if self._client.options.accounting:
            self._start_accounting()
        self._wait(self._site.munge_socket.is_socket, "munged to open its socket")
        self._daemons["slurmctld"].start()
        self._wait(lambda: _listens(self._site.slurmctld_port), "slurmctld to open its port")
        for name in self._client.options.node_names:
            self._daemons[name].start()
        self._wait(self._nodes_are_idle, "all nodes to be idle")

    def _start_accounting(self) -> None:
        site = self._site
        env = clean_environment(site.slurm_conf)
        create_database(site, env)
        self._daemons["mariadbd"].start()
        self._wait(lambda: _accepts(site.database_socket), "mariadbd to answer on its socket")
        self._daemons["slurmdbd"].start()
        self._wait(lambda: _listens(site.slurmdbd_port), "slurmdbd to open its port")
        create_accounts(self._client.options, site.user, env)

    def _nodes_are_idle(self) -> bool:
        lines = self._client.run("sinfo", "--noheader", "--format=%T", check=False)
        return set(lines.split()) == {"idle"}

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def done() -> bool:
            self._check_alive(what)
            return condition()

        wait_until(done, what=what, timeout_s=_START_TIMEOUT_S, details=self._logs)

    def _check_alive(self, what: str) -> None:
        dead = [one for one in self._daemons.values() if one.process is not None and not one.alive]
        if dead:
            names = ", ".join(daemon.spec.name for daemon in dead)
            tails = "\n".join(daemon.log_tail() for daemon in dead)
            raise SlurmClusterError(f"{names} ended while waiting for {what}\n{tails}")

    def _logs(self) -> str:
        return "\n".join(one.log_tail() for one in self._daemons.values() if one.process)


def port_was_taken(site: Site) -> bool:
    """Say whether a daemon met a port that somebody took after it was found free."""
    logs = [path.read_text(errors="replace") for path in site.logs.glob("*.log")]
    return any("Address already in use" in log for log in logs)


def remove_site(site: Site) -> None:
    """Remove the folder of a cluster."""
    shutil.rmtree(site.root, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
