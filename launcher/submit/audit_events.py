"""Writes acts of client and supervisor into the run's audit trail, each where it happens.

A refused launch leaves no run folder and so no trail. Nothing here can stop a run: what cannot be
written is logged as an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
import yaml

from submitrain.attempts import Decision
from submitrain.errors import SubmitrainError
from submitrain.events import mapping
from submitrain.launcher.submit.claims import SUPERVISOR, read_submissions, recorded_parameters
from submitrain.launcher.submit.record import Redactor, via
from submitrain.monitor.audit.chain import ASKED, DONE, Act, canonical
from submitrain.monitor.audit.ledger import AuditLedger
from submitrain.monitor.audit.transcribe import transcribe
from submitrain.run_folder import RunDir

log = structlog.get_logger(__name__)


@dataclass
class PendingAct:
    """An act under way; the job that it makes or concerns may be known only later."""

    job_id: str = ""


def client_act(run_dir: RunDir, act: Act, job_id: str = "") -> AbstractContextManager[PendingAct]:
    """Note an act of the user when it is over, also when it was refused."""
    return _audited(AuditLedger(run_dir, via()), act, job_id)


def note_launch(run_dir: RunDir, job_id: str, unknown: SubmitrainError | None = None) -> None:
    """Note a launch; ``unknown`` is why it stayed open whether the job was taken."""
    outcome = DONE if unknown is None else f"unknown: {_clean(str(unknown))}"
    facts = submission_facts(run_dir)
    AuditLedger(run_dir, via()).note(Act.LAUNCH, outcome=outcome, job_id=job_id, facts=facts)


class SupervisorAudit:
    """What the supervisor of one job does; it has one ledger."""

    def __init__(self, run_dir: RunDir, job_id: str) -> None:
        self._run_dir, self._job_id = run_dir, job_id
        self._ledger = AuditLedger(run_dir, SUPERVISOR)

    def requeue(self, attempt: int, decision: Decision) -> None:
        """Before Slurm is asked: when it agrees, it ends this process."""
        why = {"cause": str(decision.cause), "why": _clean(decision.explanation)}
        self._note_requeue(attempt, ASKED, why)

    def not_requeued(self, attempt: int, refused: Decision) -> None:
        """Slurm did not take the job back."""
        self._note_requeue(attempt, f"refused: {_clean(refused.explanation)}", {})

    def resubmit(self) -> AbstractContextManager[PendingAct]:
        """A new job for the run, submitted by this one."""
        return _audited(self._ledger, Act.RESUBMIT, "", after=self._job_id)

    def published(self) -> None:
        """Transcribe what the ranks published, at begin and end: a requeue must not wait for it."""
        try:
            transcribe(self._run_dir, self._ledger)
        except Exception as error:  # whatever an event file holds: the run goes on
            log.error("audit_not_written", why=f"{type(error).__name__}: {error}")

    def _note_requeue(self, attempt: int, outcome: str, facts: Mapping[str, Any]) -> None:
        job_id, act = self._job_id, Act.REQUEUE
        self._ledger.note(act, job_id=job_id, attempt=attempt, outcome=outcome, facts=facts)


@contextmanager
def _audited(ledger: AuditLedger, act: Act, job_id: str, **more: str) -> Iterator[PendingAct]:
    pending, outcome = PendingAct(job_id), DONE
    try:
        yield pending
    except BaseException as error:
        expected = isinstance(error, SubmitrainError | OSError)
        words = _clean(str(error) or type(error).__name__)
        outcome = f"{'refused' if expected else 'unknown'}: {words}"
        raise
    finally:
        facts = {**submission_facts(ledger.run_dir), **more}
        attempt = ledger.run_dir.newest_attempt()
        ledger.note(act, outcome=outcome, job_id=pending.job_id, attempt=attempt, facts=facts)


def submission_facts(run_dir: RunDir) -> dict[str, Any]:
    """With what a run is submitted, without secrets; None where it is not known."""
    try:
        record = mapping(json.loads(run_dir.record.read_text()))
        text = run_dir.config.read_bytes()
        parameters = recorded_parameters(read_submissions(run_dir)) or {}
        facts = facts_of(record, mapping(yaml.safe_load(text)), parameters)
    except Exception as error:  # an odd file must not stop what the user asked for
        log.error("audit_facts_unknown", why=f"{type(error).__name__}: {error}")
        return {}
    return {**facts, "config_sha256": hashlib.sha256(text).hexdigest()}


def facts_of(
    record: Mapping[str, Any], config: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The same of the content of ``record.json``, ``config.yaml`` and the sbatch parameters."""
    git, packages = mapping(record.get("git")), record.get("packages")
    slurm, model, dataset = (mapping(config.get(key)) for key in ("slurm", "model", "dataset"))
    image = slurm.get("container_image")
    facts = {
        "cluster": record.get("cluster"),
        "account": parameters.get("account"),
        "partition": parameters.get("partition"),
        "qos": parameters.get("qos"),
        "git_commit": git.get("commit"),
        "git_diff_sha256": git.get("diff_sha256"),
        "image": image,
        "image_digest": str(image).partition("@")[2] or None,
        "dataset": dataset.get("dataset_name") or dataset.get("_target_"),
        "dataset_revision": dataset.get("revision"),
        "base_model": model.get("pretrained_model_name_or_path"),
        "base_model_revision": model.get("revision"),
        "seed": config.get("seed"),
        "packages_sha256": hashlib.sha256(canonical(packages)).hexdigest() if packages else None,
    }
    return {key: _clean(value) if isinstance(value, str) else value for key, value in facts.items()}


def _clean(text: str) -> str:
    """One line without the values of this environment's secrets."""
    return " ".join(Redactor.of(os.environ).text(text).split())
