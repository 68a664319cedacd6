"""Faults from outside: what Slurm, administrators, users and hardware do to a running job.

Each act is a context manager: it strikes when it is entered; what it broke is mended when it is
left, after the run has recovered. Acts that a run does not notice return when they are over.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from submitrain.events import Kind, read_events
from tests.cluster.cluster import SlurmCluster
from tests.faults.site import Site
from tests.faults.watch import RunWatch


@dataclass
class Scene:
    """Where an act takes place; acts note whom they struck."""

    site: Site
    watch: RunWatch
    attempt: int
    seconds: float
    step_s: float
    rank: int | None = None
    node: str = ""

    @property
    def cluster(self) -> SlurmCluster:
        """The cluster that the job runs on."""
        return self.site.cluster

    @property
    def job_id(self) -> int:
        """Id of the run's newest job."""
        return int(list(read_events(self.watch.run_dir.submissions))[-1]["job_id"])

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes of the attempt, in the order of their ranks."""
        record = self.watch.attempt(self.attempt)
        assert record is not None
        return record.nodes


STEPS_MEANWHILE = 5


Act = Callable[[Scene], AbstractContextManager[None]]
ACTS: dict[str, Act] = {}


def act(function: Callable[[Scene], Iterator[None]]) -> Act:
    """Register an act under its function's name."""
    managed = contextmanager(function)
    ACTS[function.__name__] = managed
    return managed


@act
def nothing(scene: Scene) -> Iterator[None]:
    """The job meets its fate by itself."""
    yield


@act
def preempt(scene: Scene) -> Iterator[None]:
    """A job of higher priority takes all nodes for a while."""
    scene.cluster.submit_high_priority_job(nodes=scene.cluster.options.nodes, seconds=2)
    yield


@act
def requeue(scene: Scene) -> Iterator[None]:
    """An administrator puts the job back into the queue."""
    scene.cluster.run("scontrol", "requeue", str(scene.job_id))
    yield


@act
def scancel(scene: Scene) -> Iterator[None]:
    """The user cancels the job without asking us."""
    scene.cluster.run("scancel", str(scene.job_id))
    yield


@act
def kill_supervisor(scene: Scene) -> Iterator[None]:
    """SIGKILL to the batch process."""
    os.kill(scene.watch.supervisor[0], signal.SIGKILL)
    yield


@act
def stop_controller(scene: Scene) -> Iterator[None]:
    """slurmctld answers nobody for a while."""
    with slowly(scene), stopped(scene, "slurmctld"):
        time.sleep(scene.seconds)
    yield


@act
def stop_database(scene: Scene) -> Iterator[None]:
    """slurmdbd answers nobody for a while."""
    with slowly(scene), stopped(scene, "slurmdbd"):
        time.sleep(scene.seconds)
    yield


@act
def kill_rank_without_controller(scene: Scene) -> Iterator[None]:
    """A rank dies, and slurmctld cannot be asked until some time later."""
    with stopped(scene, "slurmctld"):
        kill_rank(scene, 1)
        time.sleep(scene.seconds)
    yield


@act
def kill_rank_without_database(scene: Scene) -> Iterator[None]:
    """A rank dies, and slurmdbd cannot be asked until some time later."""
    with stopped(scene, "slurmdbd"):
        kill_rank(scene, 1)
        time.sleep(scene.seconds)
    yield


@act
def look_for_sacct(scene: Scene) -> Iterator[None]:
    """Make sure that the supervisor really has no sacct."""
    environ = (scene.watch.supervisor[1] / "environ").read_bytes().decode()
    path = dict(entry.partition("=")[::2] for entry in environ.split("\0"))["PATH"]
    assert shutil.which("sacct", path=path) is None, path
    assert shutil.which("squeue", path=path) is not None, path
    yield


@act
def fill_disk(scene: Scene) -> Iterator[None]:
    """The disk with the checkpoints is full until a save has failed."""
    filler, before = scene.site.small_disk / "filler", scene.watch.failed_saves
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
    except OSError:
        scene.watch.until(lambda: scene.watch.failed_saves > before, "a save to fail")
    finally:
        filler.unlink()
    yield


@act
def stop_files(scene: Scene) -> Iterator[None]:
    """The shared file system takes no write for a while; who writes waits, unkillable.

    Another process thaws it again, whatever becomes of this one.
    """
    runs = str(scene.site.runs)
    script = 'fsfreeze -f "$1" && { sleep "$2"; fsfreeze -u "$1"; }'
    command = ["sh", "-c", script, "sh", runs, f"{scene.seconds:g}"]
    with slowly(scene):
        subprocess.run(command, check=True, start_new_session=True)
    yield


@act
def lose_first_node(scene: Scene) -> Iterator[None]:
    """Power failure of the node that the supervisor runs on."""
    yield from lose(scene, 0)


@act
def lose_last_node(scene: Scene) -> Iterator[None]:
    """Power failure of the last node of the job."""
    yield from lose(scene, -1)


@act
def cut_off_last_node(scene: Scene) -> Iterator[None]:
    """The network to the job's last node is cut; it comes back when the others have gone on."""
    scene.node = scene.nodes[-1]
    scene.rank = len(scene.nodes) - 1
    scene.cluster.freeze_node(scene.node)
    try:
        yield
    finally:
        scene.cluster.thaw_node(scene.node)
        back(scene)


def lose(scene: Scene, index: int) -> Iterator[None]:
    """Everything on a node dies; slurmctld is told at once, as it would find out later."""
    scene.node = scene.nodes[index]
    scene.cluster.lose_node(scene.node)
    scene.cluster.mark_down(scene.node)
    try:
        yield
    finally:
        back(scene)


def back(scene: Scene) -> None:
    """The node is repaired."""
    scene.cluster.start_daemon(scene.node)
    scene.cluster.run("scontrol", "update", f"NodeName={scene.node}", "State=RESUME", check=False)


def kill_rank(scene: Scene, rank: int) -> None:
    """SIGKILL to a rank of the attempt."""
    starts = read_events(scene.watch.run_dir.events(rank), kinds=frozenset({Kind.START}))
    start = list(starts)[-1]
    assert start["attempt"] == scene.attempt
    scene.rank, scene.node = rank, scene.nodes[rank]
    os.kill(start["pid"], signal.SIGKILL)


@contextmanager
def slowly(scene: Scene) -> Iterator[None]:
    """Training goes on meanwhile, but does not run away."""
    scene.site.set_pace(max(scene.step_s, scene.seconds / STEPS_MEANWHILE))
    try:
        yield
    finally:
        scene.site.set_pace(scene.step_s)


@contextmanager
def stopped(scene: Scene, daemon: str) -> Iterator[None]:
    """A daemon that answers nobody."""
    scene.cluster.pause(daemon)
    try:
        yield
    finally:
        scene.cluster.resume(daemon)
