"""How ranks ended, in words for people. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from launcher.evidence import AttemptEvidence, RankExit, RankFailure


def name_rank(rank: int, hosts: Mapping[int, str]) -> str:
    """``rank 3 (node2)``."""
    host = hosts.get(rank)
    return f"rank {rank} ({host})" if host else f"rank {rank}"


def describe_failure(failure: RankFailure) -> str:
    """``rank 3 (node2) raised ValueError at step 17 (train/loop.py:80): message``."""
    host = f" ({failure.host})" if failure.host else ""
    where = f" ({failure.where})" if failure.where else ""
    first_line = failure.message.strip().partition("\n")[0]
    return (
        f"rank {failure.rank}{host} raised {failure.exception} at step {failure.step} in phase "
        f"{failure.phase}{where}: {first_line}"
    )


def describe_exit(one: RankExit, evidence: AttemptEvidence) -> str:
    """``rank 1 (node2) was killed by SIGKILL at step 10``."""
    host = f" ({one.host})" if one.host else ""
    step = f" at step {evidence.last_step}" if evidence.last_step is not None else ""
    if evidence.first_step is None and not evidence.last_step:
        step = " before its first step"
    return f"rank {one.rank}{host} {describe_code(one.code)}{step}"


def describe_code(code: int) -> str:
    """``was killed by SIGKILL (...)`` or ``exited with code 3``."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (the kernel does this when memory runs out)" if code == -signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
