"""Writes the text of slurm.conf, slurmdbd.conf and gres.conf: pure functions.

Sources: slurm.conf(5), slurmdbd.conf(5) and gres.conf(5) of Slurm 22.05.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.cluster.options import ClusterOptions

CLUSTER_NAME = "submitrain"


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where one cluster lives: its folder, its ports, the host and the user it runs as."""

    root: Path
    host: str
    user: str
    slurmctld_port: int
    slurmdbd_port: int
    slurmd_ports: tuple[int, ...]
    own_hostnames: bool
    """Each slurmd has a UTS namespace in which the host is called like the node."""

    @property
    def slurm_conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.root / "munge.sock"

    @property
    def database_socket(self) -> Path:
        return self.root / "db.sock"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    def hosts_file(self, daemon: str) -> Path:
        """Return what a daemon sees as /etc/hosts; each has its own, which tells them apart."""
        return self.root / "etc" / f"{daemon}.hosts"

    def gpu_device(self, index: int) -> Path:
        return self.root / "dev" / f"gpu{index}"


def render_slurm_conf(options: ClusterOptions, site: Site) -> str:
    """Return slurm.conf: general settings, preemption, accounting, nodes, partitions."""
    return "\n".join(
        [
            *_general_lines(options, site),
            *_preemption_lines(options),
            *_accounting_lines(options, site),
            *options.extra_slurm_conf,
            *_node_lines(options, site),
            *_partition_lines(options),
            "",
        ]
    )


def _general_lines(options: ClusterOptions, site: Site) -> list[str]:
    root = site.root
    return [
        f"ClusterName={CLUSTER_NAME}",
        f"SlurmctldHost={site.host}(127.0.0.1)",
        f"SlurmctldPort={site.slurmctld_port}",
        f"SlurmUser={site.user}",
        f"SlurmdUser={site.user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={site.munge_socket},cred_expire={options.cred_expire_s}",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool/%n",
        f"SlurmctldPidFile={root}/run/slurmctld.pid",
        f"SlurmdPidFile={root}/run/%n.pid",
        "SlurmdParameters=config_overrides",
        "MpiDefault=none",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=5",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        f"DefMemPerCPU={max(1, options.memory_mb // options.cpus)}",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=2",
        "ReturnToService=2",
        "JobRequeue=1",
        f"SlurmdTimeout={options.slurmd_timeout_s}",
        f"KillWait={options.kill_wait_s}",
        f"MinJobAge={options.min_job_age_s}",
        "InactiveLimit=0",
        "GresTypes=gpu",
    ]


def _preemption_lines(options: ClusterOptions) -> list[str]:
    plugin = "qos" if options.accounting else "partition_prio"
    lines = [f"PreemptType=preempt/{plugin}", f"PreemptMode={options.preempt_mode}"]
    if options.preempt_notice_s is not None:
        lines.append("SlurmctldParameters=preempt_send_user_signal")
    return lines


def _accounting_lines(options: ClusterOptions, site: Site) -> list[str]:
    if not options.accounting:
        return ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={site.slurmdbd_port}",
        f"AccountingStoragePass={site.munge_socket}",
        "AccountingStorageEnforce=associations,limits,qos",
        "AccountingStorageTRES=gres/gpu",
    ]


def _node_lines(options: ClusterOptions, site: Site) -> list[str]:
    hosts = {name: name if site.own_hostnames else site.host for name in options.node_names}
    gres = f" Gres=gpu:h100:{options.gpus_per_node}" if options.gpus_per_node else ""
    return [
        f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={hosts[name]}"
        f" Port={port} CPUs={options.cpus} Boards=1 SocketsPerBoard=1"
        f" CoresPerSocket={options.cpus} ThreadsPerCore=1 RealMemory={options.memory_mb}{gres}"
        for name, port in zip(options.node_names, site.slurmd_ports, strict=True)
    ]


def _partition_lines(options: ClusterOptions) -> list[str]:
    nodes = ",".join(options.node_names)
    common = f"Nodes={nodes} MaxTime={options.max_time} DefaultTime=01:00:00 State=UP"
    grace = f" GraceTime={options.preempt_notice_s or 0}" if not options.accounting else ""
    return [
        f"PartitionName=normal Default=YES PriorityTier=1 {common}{grace}",
        f"PartitionName=high PriorityTier=10 {common}",
    ]


def render_slurmdbd_conf(site: Site) -> str:
    """Return slurmdbd.conf; MYSQL_UNIX_PORT in the daemon's environment names the database."""
    return "\n".join(
        [
            f"AuthInfo=socket={site.munge_socket}",
            "AuthType=auth/munge",
            f"DbdHost={site.host}",
            "DbdAddr=127.0.0.1",
            f"DbdPort={site.slurmdbd_port}",
            f"PidFile={site.root}/run/slurmdbd.pid",
            f"SlurmUser={site.user}",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",
            "StorageUser=root",
            "StorageLoc=slurm_acct_db",
            "",
        ]
    )


def render_gres_conf(options: ClusterOptions, site: Site) -> str:
    """Return gres.conf; without File= the nodes would come up invalid."""
    if not options.gpus_per_node:
        return "AutoDetect=off\n"
    files = f"{site.root}/dev/gpu[0-{options.gpus_per_node - 1}]"
    if options.gpus_per_node == 1:
        files = str(site.gpu_device(0))
    nodes = ",".join(options.node_names)
    return f"AutoDetect=off\nNodeName={nodes} Name=gpu Type=h100 File={files}\n"
