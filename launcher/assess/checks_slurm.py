"""Slurm and the settings of it that decide what a training survives: judged; and Slurm asked."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.assess.finding import Finding, fail, ok, unknown, warn
from launcher.verdict.facts import ClusterFacts
from launcher.verdict.parse import read_cluster
from monitor.slurm import Answer, Ask, ask

PING_S = 3.0
CALL_S = 2.5
LEAST_KILL_WAIT_S = 15
_SITE = "the site's administrators"


@dataclass(frozen=True)
class SlurmReading:
    """What Slurm said; facts are None where its controller did not describe the cluster."""

    ping: Answer
    facts: ClusterFacts | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why nodes are out of service, by node."""


class PatientAsk:
    """Asks within one deadline, and no program again that once did not answer."""

    def __init__(self, run: Ask, *, deadline: float) -> None:
        self._run = run
        self._deadline = deadline
        self._silent: set[str] = set()

    def __call__(self, command: Sequence[str], *, timeout_s: float = CALL_S) -> Answer:
        """One command; no answer counts as None, as with `monitor.slurm.ask`."""
        left = min(timeout_s, CALL_S, self._deadline - time.monotonic())
        if command[0] in self._silent or left <= 0:
            return Answer(None, "", f"{command[0]} was not asked: no time is left")
        answer = self._run(command, timeout_s=left)
        if answer.code is None:
            self._silent.add(command[0])
        return answer


def read_slurm(*, limit_s: float, run: Ask = ask) -> SlurmReading:
    """Ask the controller whether it is there, and then what the cluster is."""
    patient = PatientAsk(run, deadline=time.monotonic() + limit_s)
    ping = run(["scontrol", "ping"], timeout_s=PING_S)
    if ping.code != 0 or not re.search(r"\bis UP\b", ping.out):
        return SlurmReading(ping)
    listed = patient(["sinfo", "--noheader", "--list-reasons", "--format=%n|%E"])
    rows = (line.partition("|") for line in listed.out.splitlines())
    reasons = {node.strip(): why.strip() for node, _, why in rows}
    return SlurmReading(ping, read_cluster(run=patient), reasons)


def judge_controller(reading: SlurmReading | None) -> Finding:
    """Whether Slurm can be used; None for a machine without it, on which runs start as well."""
    id = "slurm.controller"
    if reading is None:
        return ok(id, "no Slurm on this machine (scontrol and slurm.conf): runs start right here")
    ping = reading.ping
    said = " / ".join((ping.out.strip() or ping.error).splitlines()) or "no output"
    advice = f"`scontrol ping` and SLURM_CONF; then {_SITE}; cluster=local runs on this machine"
    if ping.code is None:
        return fail(id, said, advice)
    if re.search(r"\bis UP\b", ping.out):
        if reading.facts is None:
            return unknown(id, f"{said}; it does not list nodes and partitions", advice)
        return ok(id, said)
    if re.search(r"\bDOWN\b|unable to contact|connection", said, re.IGNORECASE):
        return fail(id, said, advice)
    return unknown(id, said, advice)


def judge_settings(facts: ClusterFacts) -> Iterator[Finding]:
    """The settings that matter to a training that has to survive."""
    yield judge_preemption(facts)
    yield judge_requeue(facts)
    yield judge_kill_wait(facts)
    yield judge_accounting(facts)
    yield judge_limits(facts)


def judge_preemption(facts: ClusterFacts) -> Finding:
    """Whether jobs may be preempted, what becomes of them, and whether they are told before."""
    id, kind = "slurm.preemption", facts.settings.get("PreemptType")
    if kind is None:
        return unknown(id, "PreemptType is not in `scontrol show config`", f"ask {_SITE}")
    mode = facts.settings.get("PreemptMode", "OFF")
    if kind.endswith("none") or mode == "OFF":
        return ok(id, f"PreemptType={kind}: no job is preempted")
    parameters = facts.settings.get("SlurmctldParameters", "")
    evidence = f"PreemptType={kind}, PreemptMode={mode}"
    if "preempt_send_user_signal" in parameters:
        return ok(id, f"{evidence}, with notice (preempt_send_user_signal)")
    return warn(
        id,
        f"{evidence}, SlurmctldParameters has no preempt_send_user_signal: no early notice",
        f"ask {_SITE} for it and a GraceTime; until then ckpt_every_steps bounds what is lost",
    )


def judge_requeue(facts: ClusterFacts) -> Finding:
    """Whether Slurm requeues batch jobs."""
    id, value = "slurm.requeue", facts.settings.get("JobRequeue")
    if value is None:
        return unknown(id, "JobRequeue is not in `scontrol show config`", f"ask {_SITE}")
    if value == "1":
        return ok(id, "JobRequeue=1: jobs come back after preemption and node failure")
    return warn(
        id,
        f"JobRequeue={value}: jobs do not come back unless they ask for it",
        "leave slurm.requeue at true, which asks for it",
    )


def judge_kill_wait(facts: ClusterFacts) -> Finding:
    """Seconds that ranks have between SIGTERM and SIGKILL."""
    id, match = "slurm.kill_wait", re.match(r"\d+", facts.settings.get("KillWait", ""))
    if match is None:
        return unknown(id, "KillWait is not in `scontrol show config`", f"ask {_SITE}")
    seconds = int(match[0])
    evidence = f"KillWait={seconds} s between SIGTERM and SIGKILL"
    if seconds >= LEAST_KILL_WAIT_S:
        return ok(id, evidence)
    return warn(
        id,
        f"{evidence}: too short for most checkpoints",
        "slurm.signal_lead_s is what leaves time to save; do not count on SIGTERM",
    )


def judge_accounting(facts: ClusterFacts) -> Finding:
    """Whether ended jobs can be looked up."""
    id, kind = "slurm.accounting", facts.settings.get("AccountingStorageType")
    if kind is None:
        return unknown(id, "AccountingStorageType is not in `scontrol show config`", f"ask {_SITE}")
    if not kind.endswith("/slurmdbd"):
        return warn(
            id,
            f"AccountingStorageType={kind or 'none'}: Slurm forgets jobs that have ended",
            "nothing to do: run folders keep their own record (status, monitor cost)",
        )
    if facts.associations is None:
        return warn(
            id,
            f"AccountingStorageType={kind}, and slurmdbd does not answer sacctmgr",
            f"try `sacctmgr show user` later, then {_SITE}; limits are not judged until then",
        )
    return ok(id, f"AccountingStorageType={kind}, and slurmdbd answers")


def judge_limits(facts: ClusterFacts) -> Finding:
    """Whether Slurm refuses at once what it will never start."""
    id, parts = "slurm.limits", facts.settings.get("EnforcePartLimits")
    if parts is None:
        return unknown(id, "EnforcePartLimits is not in `scontrol show config`", f"ask {_SITE}")
    enforced = ", ".join(sorted(facts.enforced)) or "none"
    evidence = f"EnforcePartLimits={parts}, AccountingStorageEnforce={enforced}"
    if parts.upper() in ("ALL", "ANY", "YES"):
        return ok(id, evidence)
    return warn(
        id,
        f"{evidence}: jobs above a partition's limits are accepted and never start",
        "`python -m launcher plan CFG` says so before anything is submitted",
    )


def judge_accounts(facts: ClusterFacts) -> Finding:
    """The accounts that may be charged, with their QOS."""
    id, mine = "slurm.accounts", facts.associations
    if not facts.settings.get("AccountingStorageType", "").endswith("/slurmdbd"):
        return ok(id, "no accounting, so no account is needed")
    if mine is None:
        return unknown(id, "slurmdbd does not answer", "`sacctmgr show user withassoc` later")
    if not mine:
        said = f"user {facts.user} may charge no account"
        remedy = f"ask {_SITE} for an association (sacctmgr add user)"
        return (fail if "associations" in facts.enforced else warn)(id, said, remedy)
    words = []
    for one in sorted(mine, key=lambda one: (not one.is_default, one.account)):
        mark = " (default)" if one.is_default else ""
        where = f" in {one.partition}" if one.partition else ""
        words.append(f"{one.account}{mark}{where}: QOS {', '.join(sorted(one.qos)) or 'none'}")
    return ok(id, f"user {facts.user}: {'; '.join(words)}")
