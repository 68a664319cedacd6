"""Sees runs as they are: their folders, and one query of the scheduler for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from monitor.evidence import RunEvidence, RunHead, read_evidence, read_head
from monitor.jobs import job_views
from monitor.status import JobState, JobView, RunStatus, status_of
from train.errors import UserError


@dataclass(frozen=True)
class Sight:
    """What one look saw of a run, before it is judged."""

    evidence: RunEvidence
    status: RunStatus
    job: JobView


Trouble = Callable[[Path, Exception], None]
"""Told of a run that cannot be read."""


def see(folders: Iterable[Path], trouble: Trouble | None = None) -> Iterator[Sight]:
    """These runs one after the other: of many, no two have to fit into memory together.

    A run that cannot be read is left out where somebody is told of its ``trouble``.

    Raises:
        OSError: one cannot be read, and nobody is told.
    """
    heads = (readable_head(folder, trouble) for folder in folders)
    return sights([head for head in heads if head is not None], trouble)


def readable_head(folder: Path, trouble: Trouble | None) -> RunHead | None:
    """The head of a run; None where it cannot be read and somebody was told."""
    try:
        return read_head(folder)
    except (OSError, UserError) as error:
        if trouble is None:
            raise
        trouble(folder, error)
        return None


def sights(heads: Iterable[RunHead], trouble: Trouble | None = None) -> Iterator[Sight]:
    """The same for runs whose heads were read."""
    heads = list(heads)
    # The job is asked before the folder is read: when it had ended by then, the supervisor's last
    # words are in the folder.
    views = job_views(heads)
    for head in heads:
        try:
            evidence = read_evidence(head.folder)
        except (OSError, UserError) as error:
            if trouble is None:
                raise
            trouble(head.folder, error)
            continue
        job = views[head.folder.name]
        if evidence.submission != head.submission:
            job = JobView(JobState.UNKNOWN, "it was submitted again a moment ago")
        yield Sight(evidence, status_of(evidence, job), job)
