"""What Slurm offers a run: its settings, partitions, GPUs and accounts, and the job's start."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from submitrain.config.types import format_duration
from submitrain.launcher.checks.finding import Finding, fail, ok, unknown, warn
from submitrain.launcher.checks.schedulability import Outcome, Schedulability
from submitrain.slurm.client import Answer, Ask, ask, out_of_service, ping, read_cluster
from submitrain.slurm.cluster import ClusterFacts, NodeFacts, PartitionFacts

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


@dataclass
class AskWithinDeadline:
    """Asks within one deadline, and no program again that once did not answer."""

    ask: Ask
    deadline: float
    """Of time.monotonic."""
    _silent: set[str] = field(default_factory=set)

    def __call__(self, command: Sequence[str], *, timeout_s: float = CALL_S) -> Answer:
        """One command; no answer counts as None, as with `submitrain.slurm.client.ask`."""
        left = min(timeout_s, CALL_S, self.deadline - time.monotonic())
        if command[0] in self._silent or left <= 0:
            return Answer(None, "", f"{command[0]} was not asked: no time is left")
        answer = self.ask(command, timeout_s=left)
        if answer.code is None:
            self._silent.add(command[0])
        return answer


def read_slurm(*, limit_s: float, run: Ask = ask) -> SlurmReading:
    """Ask the controller whether it is there, and then what the cluster is."""
    bounded = AskWithinDeadline(run, time.monotonic() + limit_s)
    pinged = ping(run=run, timeout_s=PING_S)
    if pinged.code != 0 or not re.search(r"\bis UP\b", pinged.out):
        return SlurmReading(pinged)
    reasons = out_of_service(run=bounded)
    return SlurmReading(pinged, read_cluster(run=bounded), reasons)


def judge_controller(reading: SlurmReading | None) -> Finding:
    """Whether Slurm can be used; None for a machine without it, on which runs start as well."""
    id = "slurm.controller"
    if reading is None:
        return ok(id, "no Slurm on this machine (scontrol and slurm.conf): runs start right here")
    answer = reading.ping
    said = " / ".join((answer.out.strip() or answer.error).splitlines()) or "no output"
    advice = f"`scontrol ping` and SLURM_CONF; then {_SITE}; cluster=local runs on this machine"
    if answer.code is None:
        return fail(id, said, advice)
    if re.search(r"\bis UP\b", answer.out):
        if reading.facts is None:
            return unknown(id, f"{said}; it does not list nodes and partitions", advice)
        return ok(id, said)
    if re.search(r"\bDOWN\b|unable to contact|connection", said, re.IGNORECASE):
        return fail(id, said, advice)
    return unknown(id, said, advice)


def judge_settings(facts: ClusterFacts) -> Iterator[Finding]:
    """The settings that decide what a run survives, each unknown where Slurm does not say it."""
    for id, setting, judge in (
        ("slurm.preemption", "PreemptType", _preemption),
        ("slurm.requeue", "JobRequeue", _requeue),
        ("slurm.kill_wait", "KillWait", _kill_wait),
        ("slurm.accounting", "AccountingStorageType", _accounting),
        ("slurm.limits", "EnforcePartLimits", _limits),
    ):
        value = facts.settings.get(setting)
        if value is None:
            yield unknown(id, f"{setting} is not in `scontrol show config`", f"ask {_SITE}")
        else:
            told, problem, remedy = judge(value, facts)
            evidence = f"{setting}={value or 'none'}{told}"
            yield warn(id, f"{evidence}: {problem}", remedy) if problem else ok(id, evidence)


_Judged = tuple[str, str, str]
"""What to say after the setting, a problem with it, and a remedy; the last two may be empty."""


def _preemption(kind: str, facts: ClusterFacts) -> _Judged:
    """Whether jobs may be preempted, what becomes of them, and whether they are told before."""
    mode = facts.settings.get("PreemptMode", "OFF")
    if kind.endswith("none") or mode == "OFF":
        return ": no job is preempted", "", ""
    told = f", PreemptMode={mode}"
    if "preempt_send_user_signal" in facts.settings.get("SlurmctldParameters", ""):
        return f"{told}, with notice (preempt_send_user_signal)", "", ""
    remedy = f"ask {_SITE} for it and a GraceTime; until then ckpt_every_steps bounds what is lost"
    told += ", SlurmctldParameters has no preempt_send_user_signal"
    return told, "no early notice", remedy


def _requeue(value: str, facts: ClusterFacts) -> _Judged:
    """Whether Slurm requeues batch jobs."""
    if value == "1":
        return ": jobs come back after preemption and node failure", "", ""
    problem = "jobs do not come back unless they ask for it"
    return "", problem, "leave slurm.requeue at true, which asks for it"


def _kill_wait(value: str, facts: ClusterFacts) -> _Judged:
    """Seconds that ranks have between SIGTERM and SIGKILL: ``30 sec``."""
    told, seconds = " between SIGTERM and SIGKILL", re.match(r"\d+", value)
    if seconds is not None and int(seconds[0]) >= LEAST_KILL_WAIT_S:
        return told, "", ""
    remedy = "slurm.signal_lead_s is what leaves time to save; do not count on SIGTERM"
    return told, "too short for most checkpoints", remedy


def _accounting(kind: str, facts: ClusterFacts) -> _Judged:
    """Whether ended jobs can be looked up."""
    if not facts.has_accounting:
        remedy = "nothing to do: run folders keep their own record (status, monitor cost)"
        return "", "Slurm forgets jobs that have ended", remedy
    if facts.associations is None:
        later = f"try `sacctmgr show user` later, then {_SITE}; limits are not judged until then"
        return "", "slurmdbd does not answer sacctmgr", later
    return ", and slurmdbd answers", "", ""


def _limits(parts: str, facts: ClusterFacts) -> _Judged:
    """Whether Slurm refuses at once what it will never start."""
    told = f", AccountingStorageEnforce={', '.join(sorted(facts.enforced)) or 'none'}"
    if parts.upper() in ("ALL", "ANY", "YES"):
        return told, "", ""
    problem = "jobs above a partition's limits are accepted and never start"
    return told, problem, "`python -m launcher plan CFG` says so before anything is submitted"


def judge_accounts(facts: ClusterFacts) -> Finding:
    """The accounts that may be charged, with their QOS."""
    id, mine = "slurm.accounts", facts.associations
    if not facts.has_accounting:
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


_MOST_NAMED = 8
_OUT = ("drained", "down")


def judge_gpus(facts: ClusterFacts) -> Finding:
    """GPUs of the cluster by type, all and free."""
    id, declared = "slurm.gpus", facts.settings.get("GresTypes")
    if any(node.gpus for node in facts.nodes.values()):
        return ok(id, _gpus(facts.nodes.values()))
    if declared is None:
        return unknown(id, "GresTypes is not in `scontrol show config`", "see `sinfo -o '%P %G'`")
    return warn(
        id,
        f"no node has a GPU that Slurm hands out (GresTypes={declared or 'none'})",
        "train on CPUs (slurm.gpus_per_node: 0), or ask the site for gres.conf",
    )


def judge_partitions(
    facts: ClusterFacts, *, needed: Collection[str] = (), reasons: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """One finding for each partition; one that is ``needed`` and takes no job fails.

    Without ``needed`` that is the default partition; ``reasons`` tell why nodes are out, by name.
    """
    needed = needed or {name for name in [facts.default_partition] if name}
    for name in sorted(set(facts.partitions) | set(needed)):
        found = facts.partitions.get(name)
        if found is None:
            known = ", ".join(sorted(facts.partitions))
            said = f"there is no partition {name}"
            yield fail(f"slurm.partition.{name}", said, f"set slurm.partition to one of {known}")
        else:
            yield judge_partition(found, facts, needed=name in needed, reasons=reasons or {})


def judge_partition(
    partition: PartitionFacts, facts: ClusterFacts, *, needed: bool, reasons: Mapping[str, str]
) -> Finding:
    """The true state of one partition, as counts of its nodes."""
    id = f"slurm.partition.{partition.name}"
    nodes = [facts.nodes[name] for name in sorted(partition.nodes) if name in facts.nodes]
    if len(nodes) < len(partition.nodes) or partition.state == "UNKNOWN":
        said = f"state {partition.state}, {len(nodes)} of {len(partition.nodes)} nodes are known"
        return unknown(id, said, f"`scontrol show partition {partition.name}`")
    by_kind: dict[str, list[str]] = {kind: [] for kind in ("idle", "mixed", "alloc", *_OUT)}
    for node in nodes:
        why = f" ({reasons[node.name]})" if node.name in reasons else ""
        by_kind[kind_of(node)].append(f"{node.name}{why}")
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in by_kind.items() if names)
    limit = partition.max_time_s
    told = [
        f"{partition.state.lower()}{', default' if partition.is_default else ''}",
        f"{len(nodes)} nodes: {counts or 'none'}",
        f"time limit {'none' if limit is None else format_duration(limit)}",
        _gpus(nodes),
    ]
    for kind in _OUT:
        if names := by_kind[kind]:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            told.append(f"{kind}: {', '.join(names[:_MOST_NAMED])}{more}")
    evidence = "; ".join(told)
    serious = fail if needed else warn
    if partition.state != "UP":
        closed = "no job of it starts; take another partition, or ask the site when it is back"
        return serious(id, evidence, closed)
    if not any(node.is_up for node in nodes):
        return serious(id, evidence, "no node of it is up; take another, or ask the site")
    if out := sum(len(by_kind[kind]) for kind in _OUT):
        remedy = f"plan with {len(nodes) - out} of {len(nodes)} nodes, or ask the site when"
        return warn(id, evidence, f"{remedy} the others are back (`sinfo -R`)")
    return ok(id, evidence)


def kind_of(node: NodeFacts) -> str:
    """``idle``, ``mixed``, ``alloc``, ``drained`` (also while jobs on it end) or ``down``."""
    if node.state in ("DOWN", "UNKNOWN", "INVAL", "FAIL") or "NOT_RESPONDING" in node.flags:
        return "down"
    if not node.is_up:
        return "drained"
    return {"IDLE": "idle", "MIXED": "mixed", "ALLOCATED": "alloc"}.get(node.state, "alloc")


def _gpus(nodes: Iterable[NodeFacts]) -> str:
    """``24 of 32 h100 free``; of a node with several types Slurm tells only the sum in use."""
    total: Counter[str] = Counter()
    free: Counter[str] = Counter()
    for node in nodes:
        kind = " + ".join(sorted(node.gpus)) or ""
        total[kind] += sum(node.gpus.values())
        free[kind] += max(0, node.free_gpus) if node.is_up else 0
    present = [(kind, count) for kind, count in sorted(total.items()) if count]
    words = [f"{free[kind]} of {count} {kind}".rstrip() for kind, count in present]
    return f"GPUs free: {', '.join(words)}" if words else "no GPUs"


SCHEDULABILITY_ID = "config.verdict"


def judge_schedulability(found: Schedulability | None, config: str) -> Finding:
    """Only what can never run fails; a queue is no fault, if anyone can say how long it is."""
    id, plan = SCHEDULABILITY_ID, f"`python -m launcher plan {config}`"
    if found is None:
        return ok(id, f"{config} can be planned; it would run on this machine, without a queue")
    evidence = "; ".join(found.lines())
    if found.outcome is Outcome.IMPOSSIBLE:
        return fail(id, evidence, f"change the configuration; {plan} shows the request")
    if found.outcome is Outcome.UNKNOWN:
        return unknown(id, evidence, f"{plan} when Slurm answers")
    if found.outcome is Outcome.WAITS and found.wait_s is None:
        return warn(id, evidence, f"take what starts sooner; {plan} shows the request")
    return ok(id, evidence)
