"""Sees runs as they are: their folders, and one query of the scheduler for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from monitor.evidence import RunEvidence, RunHead, read_evidence, read_head
from monitor.jobs import job_views
from monitor.status import JobState, JobView, RunStatus, status_of


@dataclass(frozen=True)
class Sight:
    """What one look saw of a run, before it is judged."""

    evidence: RunEvidence
    status: RunStatus
    job: JobView


def see(folders: Iterable[Path]) -> Iterator[Sight]:
    """These runs one after the other: of many, no two have to fit into memory together."""
    return sights([read_head(folder) for folder in folders])


def sights(heads: Iterable[RunHead]) -> Iterator[Sight]:
    """The same for runs whose heads were read."""
    heads = list(heads)
    # The job is asked before the folder is read: when it had ended by then, the supervisor's last
    # words are in the folder.
    views = job_views(heads)
    for head in heads:
        evidence = read_evidence(head.folder)
        job = views[head.folder.name]
        if evidence.submission != head.submission:
            job = JobView(JobState.UNKNOWN, "it was submitted again a moment ago")
        yield Sight(evidence, status_of(evidence, job), job)
