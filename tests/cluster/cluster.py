"""A private Slurm cluster with several nodes on this one machine.

    with SlurmCluster.start(ClusterOptions(nodes=2)) as cluster:
        job_id = cluster.sbatch("srun hostname", "--nodes=2")
        cluster.wait_for_state(job_id, "COMPLETED")

Every daemon is real; only the hardware is pretended. Where the kernel allows it (root does), each
slurmd has a mount and a UTS namespace: its jobs see the node's name as the host name, and all node
names resolve to 127.0.0.1, without a change to the host's own /etc/hosts.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.boot import Boot, create_daemons, create_site, port_was_taken, remove_site
from tests.cluster.client import SlurmClient
from tests.cluster.conf import Site
from tests.cluster.daemon import Daemon, SlurmClusterError
from tests.cluster.guard import ExitGuard
from tests.cluster.options import ClusterOptions, install_hint, missing_packages
from tests.cluster.process import ProcessId, identify, is_paused, processes_of, send_signal
from tests.cluster.state import ClusterState, list_clusters, read_state, write_state

_START_ATTEMPTS = 3
_STOP_TIMEOUT_S = 20.0


class SlurmCluster(SlurmClient):
    """One running cluster: the commands of SlurmClient, its life, and faults on request.

    It stops at the end of `with`, at exit, on SIGTERM and SIGHUP; after a SIGKILL of this process
    the next cluster of the same user that starts clears it away.
    """

    def __init__(self, site: Site, options: ClusterOptions, *, owner: ProcessId | None) -> None:
        super().__init__(options, site.slurm_conf)
        self.site = site
        self.owner = owner
        self.daemons: dict[str, Daemon] = create_daemons(options, site)
        self._guard = ExitGuard(self.stop)

    @classmethod
    def start(cls, options: ClusterOptions | None = None, *, detached: bool = False) -> Self:
        """Start a cluster and return it when all nodes are idle.

        A detached cluster outlives this process. Raises SlurmClusterError with the daemons' last
        log lines, or with the command that installs what is missing.
        """
        options = options or ClusterOptions()
        packages = missing_packages(options)
        if packages:
            raise SlurmClusterError(f"a real Slurm needs more packages: {install_hint(packages)}")
        remove_abandoned_clusters()
        for attempt in range(1, _START_ATTEMPTS + 1):
            site = create_site(options)
            cluster = cls(site, options, owner=None if detached else identify(os.getpid()))
            try:
                cluster._boot()
            except BaseException:
                retry = port_was_taken(site) and attempt < _START_ATTEMPTS
                cluster.stop()
                if not retry:
                    raise
            else:
                return cluster
        raise AssertionError("the last attempt returns or raises")

    @classmethod
    def attach(cls, root: Path) -> Self:
        """Take over a cluster that another process started; SlurmClusterError if there is none."""
        state = read_state(root)
        if state is None:
            raise SlurmClusterError(
                f"{root} holds no running cluster; `python -m tests.cluster up` starts one"
            )
        cluster = cls(state.site, state.options, owner=state.owner)
        for name, process in state.daemons.items():
            cluster.daemons[name].process = process
        return cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _boot(self) -> None:
        if self.owner is not None:
            self._guard.arm()
        self._save()
        Boot(self, self.site, self.daemons).start_all()
        self._save()

    def _save(self) -> None:
        daemons = {name: daemon.process for name, daemon in self.daemons.items()}
        write_state(ClusterState(self.options, self.site, self.owner, daemons))

    def stop(self) -> None:
        """End every process of the cluster and remove its folder; may be called again.

        Raises SlurmClusterError with the pids if a process survives even SIGKILL.
        """
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        # SIGKILL at once: nobody reads the state again, and a daemon that ends in good order would
        # requeue jobs and tell others meanwhile. Again and again, as jobs may fork.
        while left := self.processes():
            for process in left:
                send_signal(process, signal.SIGKILL)
            for daemon in self.daemons.values():
                daemon.reap()
            if time.monotonic() > deadline:
                pids = ", ".join(str(process.pid) for process in left)
                raise SlurmClusterError(
                    f"processes {pids} of {self.site.root} do not end: it stays"
                )
            time.sleep(0.02)
        remove_site(self.site)
        self._guard.disarm()

    def processes(self) -> dict[ProcessId, str]:
        """Return every process of the cluster, ranks too, with its daemon's name ("": unknown)."""
        root = self.site.root
        hosts = {f"/{self.site.hosts_file(n).relative_to(root.parent)}": n for n in self.daemons}
        found = processes_of(self.site.slurm_conf, hosts)
        for name, daemon in self.daemons.items():
            if daemon.process is not None and daemon.alive:
                found[daemon.process] = name
        return found

    def daemon(self, name: str) -> Daemon:
        """Return a daemon: slurmctld, slurmdbd, mariadbd, munged, or the slurmd of a node."""
        if name not in self.daemons:
            known = ", ".join(self.daemons)
            raise SlurmClusterError(f"no daemon {name!r} in this cluster; it has {known}")
        return self.daemons[name]

    def kill_slurmd(self, node: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a node's slurmd only: its steps and ranks live on, as after a crash."""
        self.daemon(node).signal(number)

    def lose_node(self, node: str) -> None:
        """Kill everything on a node at once, ranks too, as a power failure does.

        Slurm notices about SlurmdTimeout plus 15 s later; `mark_down` makes it know at once.
        """
        self.daemon(node)
        while left := self._on_node(node):
            for process in left:
                send_signal(process, signal.SIGKILL)
            self.daemon(node).reap()

    def freeze_node(self, node: str) -> None:
        """Stop everything on a node, as if its network were cut: old ranks may come back."""
        self.daemon(node)
        # Again until nothing moves: what is not stopped yet may fork.
        while moving := [process for process in self._on_node(node) if not is_paused(process)]:
            for process in moving:
                send_signal(process, signal.SIGSTOP)

    def thaw_node(self, node: str) -> None:
        """Let a frozen node go on where it was."""
        self.daemon(node)
        for process in self._on_node(node):
            send_signal(process, signal.SIGCONT)

    def _on_node(self, node: str) -> list[ProcessId]:
        return [process for process, name in self.processes().items() if name == node]

    def mark_down(self, node: str) -> None:
        """Tell slurmctld that a node has failed; it does what it does when it notices by itself."""
        self.daemon(node)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def pause(self, name: str) -> None:
        """Stop a daemon with SIGSTOP: it keeps its connections and answers nobody."""
        self.daemon(name).signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a paused daemon go on."""
        self.daemon(name).signal(signal.SIGCONT)

    def stop_daemon(self, name: str) -> None:
        """End a daemon in good order (SIGTERM), as an administrator does."""
        self.daemon(name).stop()
        self._save()

    def start_daemon(self, name: str) -> None:
        """Start a daemon that was stopped or killed; does nothing when it runs."""
        daemon = self.daemon(name)
        daemon.start()
        self._save()

    def restore(self, *, timeout_s: float = 60) -> None:
        """Undo faults: continue and restart everything, cancel all jobs, wait for idle nodes."""
        for process in self.processes():
            send_signal(process, signal.SIGCONT)
        for name in self.daemons:
            self.start_daemon(name)
        for name, state in self.node_states().items():
            if state.startswith(("down", "drain")):
                self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
        self.cancel_all()
        self.wait_idle(timeout_s=timeout_s)


def remove_abandoned_clusters() -> list[Path]:
    """Stop this user's clusters whose owner died without doing it; return their folders."""
    abandoned = []
    for root in list_clusters():
        state = read_state(root)
        if state is not None and state.abandoned:
            SlurmCluster.attach(root).stop()
            abandoned.append(root)
    return abandoned
