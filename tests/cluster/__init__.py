"""A real Slurm with several nodes on one machine, for the tests and for trying things out."""

from tests.cluster.cluster import SlurmCluster, remove_abandoned_clusters
from tests.cluster.daemon import SlurmClusterError
from tests.cluster.options import ClusterOptions, PreemptMode, install_hint, missing_packages

__all__ = [
    "ClusterOptions",
    "PreemptMode",
    "SlurmCluster",
    "SlurmClusterError",
    "install_hint",
    "missing_packages",
    "remove_abandoned_clusters",
]
