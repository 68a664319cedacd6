"""Asks every node of a job what it is like: one light task each, in bounded time whatever hangs.

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

from submitrain.launcher.checks.node_facts import (
    NodeFacts,
    Request,
    SharedFolder,
    Unknown,
    parse_answer,
)
from submitrain.launcher.checks.node_measure import VISIBLE_S, measure, read_token, token_file
from submitrain.launcher.supervisor.node_failures import step_environment
from submitrain.network import host_candidates

AT_ONCE = 32
FIRST_S = 60.0
"""Seconds for the first answers of all: Python may have to come from a cold file system."""
LEAST_S = 20.0
"""Seconds that a node has in any case."""
PATIENCE = 4.0
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
class Asked:
    """What came back."""

    facts: Mapping[str, NodeFacts] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    """Nodes that do not run tasks, and how that shows."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Nodes on which a task ran and failed: our Python does not work there."""
    unasked: Mapping[str, str] = field(default_factory=dict)
    """Nodes of which nothing can be said, and why."""


def ask_nodes(
    nodes: Sequence[str], *, job_id: str, folder: Path, interrupted: Callable[[], bool]
) -> Asked:
    """Ask all nodes of a Slurm job; ``folder`` is shared and exists."""
    asker = os.environ.get("SLURMD_NODENAME", "")
    with Beacon() as beacon:
        request = _request(folder, beacon, software=len(nodes) > 1)
        patience = Patience(len(nodes), interrupted)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asks = [
                pool.submit(_ask, replace(request, node=node), job_id, patience) for node in nodes
            ]
            answers = dict(zip(nodes, (one.result() for one in asks), strict=True))
    return _sorted(answers, asker)


def ask_here(*, folder: Path) -> Asked:
    """This machine alone, without a task."""
    node = socket.gethostname()
    with Beacon() as beacon:
        request = replace(_request(folder, beacon, software=False), node=node)
        began = time.time()
        facts = _seen(measure(request), request)
    return Asked({node: replace(facts, clock=skew(began, time.time(), began))})


def _request(folder: Path, beacon: Beacon, *, software: bool) -> Request:
    try:
        token_file(folder, "").write_text(f"{beacon.token}\n")
        written = True
    except OSError:
        written = False
    return Request(
        node="",
        folder=str(folder),
        token=beacon.token,
        written=written,
        hosts=tuple(host_candidates()),
        port=beacon.port,
        software=software,
    )


class Beacon:
    """Answers everybody who connects with a token: whether the first node can be reached."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self._listener = socket.create_server(("", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._answer, name="beacon", daemon=True)

    def __enter__(self) -> Beacon:
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


class Patience:
    """How long to wait for a node: by what the others took."""

    def __init__(self, nodes: int, interrupted: Callable[[], bool]) -> None:
        self._nodes, self._interrupted = nodes, interrupted
        self._took: list[float] = []
        self._ends = time.monotonic() + MOST_S
        self._lock = threading.Lock()

    def answered(self, seconds: float) -> None:
        """A node answered after so long."""
        with self._lock:
            self._took.append(seconds)

    @property
    def limit_s(self) -> float:
        """Seconds for one node, as of now."""
        with self._lock:
            took = list(self._took)
        return time_limit(took, self._nodes)

    @property
    def over(self) -> str:
        """Why nobody waits any longer; empty while somebody does."""
        if self._interrupted():
            return "the job was told to end"
        return f"not reached within {MOST_S:.0f} s" if time.monotonic() > self._ends else ""


def time_limit(took: Sequence[float], nodes: int) -> float:
    """Seconds for a node, when ``took`` are those of the nodes that have answered. Pure."""
    if 2 * len(took) < nodes or not took:
        return FIRST_S
    return min(FIRST_S, max(LEAST_S, PATIENCE * statistics.median(took)))


@dataclass(frozen=True)
class _Answer:
    facts: NodeFacts | None = None
    silent: str = ""
    broken: str = ""
    unasked: str = ""


def _ask(request: Request, job_id: str, patience: Patience) -> _Answer:
    if patience.over:
        return _Answer(unasked=patience.over)
    began, sent = time.monotonic(), time.time()
    process = _start(request, job_id)
    out, said, why = _wait(process, began, patience)
    answer = parse_answer(out, node=request.node)
    if answer is not None:
        facts, now = answer
        patience.answered(time.monotonic() - began)
        clock = skew(sent, time.time(), now)
        return _Answer(_seen(replace(facts, clock=clock), request))
    if why is None:
        return _of_failure(process.returncode, said)
    return why


def _wait(
    process: subprocess.Popen[str], began: float, patience: Patience
) -> tuple[str, str, _Answer | None]:
    """srun's output; and, when it was not waited for to its end, what that means."""
    while True:
        try:
            out, said = process.communicate(timeout=POLL_S)
            return out, said, None
        except subprocess.TimeoutExpired:
            limit_s, over = patience.limit_s, patience.over
            if over or time.monotonic() - began > limit_s:
                process.kill()
                out, said = process.communicate()
                late = f"a task did not answer within {limit_s:.0f} s"
                return out, said, _Answer(unasked=over) if over else _Answer(silent=late)


def _start(request: Request, job_id: str) -> subprocess.Popen[str]:
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


def _of_failure(code: int, said: str) -> _Answer:
    """What srun's words mean where no answer came. Pure."""
    lines = [line.strip().removeprefix("srun: ") for line in said.splitlines() if line.strip()]
    ran = [line for line in lines if "task 0:" in line or "execve" in line]
    if ran:
        own = [line for line in lines if "srun" not in line and "task 0:" not in line]
        return _Answer(broken=(own or ran)[-1])
    text = " ".join(lines).lower()
    why = lines[0].removeprefix("error: ") if lines else f"srun exited {code} without a word"
    if any(word in text for word in _NOT_STARTED):
        return _Answer(silent=why)
    return _Answer(unasked=why)


def _seen(facts: NodeFacts, request: Request) -> NodeFacts:
    """With whether the asker can read what the node wrote."""
    shared = facts.shared
    if isinstance(shared, Unknown) or shared.write_error:
        return facts
    return replace(facts, shared=_look(shared, request))


def _look(shared: SharedFolder, request: Request) -> SharedFolder:
    path = token_file(Path(request.folder), request.node)
    until = time.monotonic() + VISIBLE_S
    wanted = f"{request.token} {request.node}"
    while read_token(path, wanted):
        if time.monotonic() > until:
            return replace(shared, seen=False)
        time.sleep(POLL_S)
    return replace(shared, seen=True)


def skew(sent: float, received: float, there: float) -> float:
    """Seconds that a clock is ahead for certain, when it showed ``there`` between two times here.

    Pure. Whatever the exchange took may hide a skew; it never makes one up.
    """
    if there > received:
        return there - received
    return min(0.0, there - sent)


def _sorted(answers: Mapping[str, _Answer], asker: str) -> Asked:
    """Who is silent, and who only could not be asked. Pure.

    Where nobody answers, or the asker's own node does not, the controller is slow or away: then
    silence speaks against nobody.
    """
    facts = {node: one.facts for node, one in answers.items() if one.facts is not None}
    silent = {node: one.silent for node, one in answers.items() if one.silent}
    broken = {node: one.broken for node, one in answers.items() if one.broken}
    unasked = {node: one.unasked for node, one in answers.items() if one.unasked}
    if silent and (not facts or asker in silent):
        unasked |= {node: f"{why}, nor did {asker or 'another'}" for node, why in silent.items()}
        silent = {}
    return Asked(facts, silent, broken, unasked)
