"""Breaks one node of a test cluster: what its slurmd, and so its tasks, see of the file system."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import SlurmCluster


def on_node(cluster: SlurmCluster, node: str, *command: str) -> None:
    """Run a command in the mount namespace of a node."""
    process = cluster.daemon(node).process
    assert process is not None
    target = f"--target={process.pid}"
    subprocess.run(["nsenter", target, "--mount", "--", *command], check=True)


@contextmanager
def mounted(cluster: SlurmCluster, node: str, target: Path, *arguments: str) -> Iterator[None]:
    """Something mounted over ``target`` on one node, until the end."""
    on_node(cluster, node, "mount", *arguments, str(target))
    try:
        yield
    finally:
        on_node(cluster, node, "umount", "--lazy", str(target))


@contextmanager
def instead_of(cluster: SlurmCluster, node: str, target: Path, source: Path) -> Iterator[None]:
    """One node sees ``source`` where the others see ``target``."""
    with mounted(cluster, node, target, "--bind", str(source)):
        yield


@contextmanager
def read_only(cluster: SlurmCluster, node: str, folder: Path) -> Iterator[None]:
    """One node cannot write to a folder."""
    with mounted(cluster, node, folder, "--bind", str(folder)):
        on_node(cluster, node, "mount", "-o", "remount,bind,ro", str(folder))
        yield


@contextmanager
def full(cluster: SlurmCluster, node: str, folder: Path, tiny: Path) -> Iterator[None]:
    """One node sees all of a folder and finds the disk full: its writes go to a tiny one."""
    tiny.mkdir()
    with mounted(cluster, node, tiny, "-t", "tmpfs", "-o", "size=64k", "none"):
        on_node(cluster, node, "mkdir", f"{tiny}/upper", f"{tiny}/work")
        layers = f"lowerdir={folder},upperdir={tiny}/upper,workdir={tiny}/work"
        with mounted(cluster, node, folder, "-t", "overlay", "-o", layers, "none"):
            yield


@contextmanager
def unnamed(cluster: SlurmCluster, node: str, scratch: Path) -> Iterator[None]:
    """One node does not find its own name."""
    lines = Path(cluster.site.hosts_file(node)).read_text().splitlines()
    hosts = scratch / f"{node}.hosts"
    hosts.write_text("".join(f"{line}\n" for line in lines if node not in line.split()))
    with instead_of(cluster, node, Path("/etc/hosts"), hosts):
        yield
