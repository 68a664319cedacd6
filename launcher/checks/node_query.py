"""Runs the preflight's task on every node of a job, in bounded time whatever hangs.

One srun for each node, so that a node that does not answer keeps nobody else's answer back.
"""

from __future__ import annotations

import os
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from submitrain.launcher.checks.finding import Finding, fail, unknown
from submitrain.launcher.checks.node_folder import seen_from_the_first_node, token_file
from submitrain.launcher.checks.node_request import NodeAnswer, NodeRequest
from submitrain.launcher.checks.node_system import clock, clock_skew_s
from submitrain.launcher.checks.node_task import check_node
from submitrain.launcher.supervisor.node_failures import step_environment
from submitrain.network import host_candidates

AT_ONCE = 32
FIRST_S = 60.0
"""Seconds for the first answers of all: Python may have to come from a cold file system."""
LEAST_S = 20.0
"""Seconds that a node has in any case."""
TIMES_MEDIAN = 4.0
"""Once half of the nodes have answered, the others get this many times as long as the median."""
MOST_S = 300.0
"""Seconds for all nodes together; those that were not asked by then are unknown."""
POLL_S = 0.1
_NOT_STARTED = (
    "task launch",
    "launch failed",
    "node failure",
    "unable to contact",
    "communication connection failure",
    "slurmd",
    "timed out",
    "no route to host",
)
"""Words of srun when the node, not the task, is to blame."""


@dataclass(frozen=True)
class NoAnswer:
    """A node that gave no answer; at most one of the three is set, and says how that shows."""

    silent: str = ""
    """It does not run tasks."""
    broken: str = ""
    """A task ran and failed: our Python does not work there."""
    unasked: str = ""
    """Nothing can be said of it."""

    def finding(self) -> Finding:
        """What it means for the node."""
        if self.silent:
            remedy = "the run goes on without it; look at slurmd and the network there"
            return fail("node.answers", f"it runs no tasks: {self.silent}", remedy)
        if self.broken:
            remedy = "environment and run folder have to be there on every node, under one path"
            said = f"our Python does not run there: {self.broken}"
            return fail("node.python", said, remedy)
        return unknown("node.answers", f"it could not be asked: {self.unasked}")


Answers = Mapping[str, NodeAnswer | NoAnswer]
"""By node."""


def ask_nodes(
    nodes: Sequence[str], request: NodeRequest, *, job_id: str, interrupted: Callable[[], bool]
) -> Answers:
    """Ask all nodes of a Slurm job from its first one."""
    with ReachabilityServer() as server:
        request = _prepared(request, server)
        limit = AnswerLimit(len(nodes), interrupted)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tasks = [
                pool.submit(_ask, replace(request, node=node), job_id, limit) for node in nodes
            ]
            answers = dict(zip(nodes, (task.result() for task in tasks), strict=True))
    return excuse_silence(answers, request.asker)


def ask_here(request: NodeRequest) -> Answers:
    """Ask this machine alone, without a task."""
    with ReachabilityServer() as server:
        request = replace(_prepared(request, server), node=request.asker)
        return {request.asker: _completed(check_node(request), request, 0.0)}


def _prepared(request: NodeRequest, server: ReachabilityServer) -> NodeRequest:
    """The request with what this node offers the others: its file, its addresses."""
    try:
        token_file(Path(request.folder), "").write_text(f"{server.token}\n")
        written = True
    except OSError:
        written = False
    hosts = tuple(host_candidates())
    return replace(request, token=server.token, written=written, hosts=hosts, port=server.port)


class ReachabilityServer:
    """Answers every connection with a token, so that nodes can tell whether they reach this one."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self._listener = socket.create_server(("", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._answer, name="reachability", daemon=True)

    def __enter__(self) -> ReachabilityServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(2), which close(2) does not
        self._listener.close()
        self._thread.join()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.sendall(self.token.encode())


@dataclass
class AnswerLimit:
    """How long to wait for a node, by what the others took."""

    nodes: int
    interrupted: Callable[[], bool]
    _took: list[float] = field(default_factory=list)
    _ends: float = field(default_factory=lambda: time.monotonic() + MOST_S)

    def answered(self, seconds: float) -> None:
        """A node answered after so long; called by several threads."""
        self._took.append(seconds)

    @property
    def seconds(self) -> float:
        """For one node, as of now."""
        return time_limit(self._took.copy(), self.nodes)

    @property
    def over(self) -> str:
        """Why nobody waits any longer; empty while somebody does."""
        if self.interrupted():
            return "the job was told to end"
        return f"not reached within {MOST_S:.0f} s" if time.monotonic() > self._ends else ""


def time_limit(took: Sequence[float], nodes: int) -> float:
    """Seconds for a node, when ``took`` are those of the nodes that have answered."""
    if 2 * len(took) < nodes or not took:
        return FIRST_S
    return min(FIRST_S, max(LEAST_S, TIMES_MEDIAN * statistics.median(took)))


def _ask(request: NodeRequest, job_id: str, limit: AnswerLimit) -> NodeAnswer | NoAnswer:
    """One node's answer."""
    if limit.over:
        return NoAnswer(unasked=limit.over)
    began, sent = time.monotonic(), time.time()
    process = _start_task(request, job_id)
    gave_up: NoAnswer | None = None
    while True:
        try:
            out, said = process.communicate(timeout=POLL_S)
            break
        except subprocess.TimeoutExpired:
            seconds, over = limit.seconds, limit.over
            if over or time.monotonic() - began > seconds:
                late = NoAnswer(silent=f"a task did not answer within {seconds:.0f} s")
                gave_up = NoAnswer(unasked=over) if over else late
                process.kill()
    answer = NodeAnswer.parse(out)
    if answer is None:
        return gave_up or explain_failure(process.returncode, said)
    limit.answered(time.monotonic() - began)
    return _completed(answer, request, clock_skew_s(sent, time.time(), answer.now))


def _start_task(request: NodeRequest, job_id: str) -> subprocess.Popen[str]:
    flags = ["--overlap", "--mem=0", "--nodes=1", "--ntasks=1", f"--nodelist={request.node}"]
    flags += ["--input=none", "--job-name=preflight"]
    program = [sys.executable, "-m", "submitrain.launcher.checks.node_task", request.as_text()]
    return subprocess.Popen(
        ["srun", f"--jobid={job_id}", *flags, *program],
        env=step_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
    )


def _completed(answer: NodeAnswer, request: NodeRequest, ahead_s: float) -> NodeAnswer:
    """A node's answer with what only the first node can tell."""
    findings = [seen_from_the_first_node(one, request) for one in answer.findings]
    return replace(answer, findings=(*findings, clock(ahead_s, request.asker)))


def explain_failure(code: int, said: str) -> NoAnswer:
    """What srun's words mean where no answer came."""
    lines = [line.strip().removeprefix("srun: ") for line in said.splitlines() if line.strip()]
    ran = [line for line in lines if "task 0:" in line or "execve" in line]
    if ran:
        own = [line for line in lines if "srun" not in line and "task 0:" not in line]
        return NoAnswer(broken=(own or ran)[-1])
    why = lines[0].removeprefix("error: ") if lines else f"srun exited {code} without a word"
    if any(word in " ".join(lines).lower() for word in _NOT_STARTED):
        return NoAnswer(silent=why)
    return NoAnswer(unasked=why)


def excuse_silence(answers: Answers, asker: str) -> Answers:
    """The answers, with silent nodes unasked where their silence speaks against nobody.

    That is where nobody answers, or the asker's own node does not: then the controller is slow or
    away.
    """
    silent = {n: one for n, one in answers.items() if isinstance(one, NoAnswer) and one.silent}
    if asker not in silent and any(isinstance(one, NodeAnswer) for one in answers.values()):
        return answers
    also = f", nor did {asker or 'another'}"
    return {**answers, **{n: NoAnswer(unasked=one.silent + also) for n, one in silent.items()}}
