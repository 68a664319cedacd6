"""Worker processes of data loaders (torch/utils/data/dataloader.py, _utils/signal_handling.py)."""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

DATA_RULES = (
    rule(
        F.DATALOADER_WORKER,
        Trust.CAUSE,
        "dataloader worker",
        r"dataloader worker ?\(pid.{0,40}(?:killed|exited|signal)|"
        r"dataloader worker .{0,60}(?:exited unexpectedly|is killed|was killed|died)",
    ),
    rule(
        F.DATALOADER_WORKER, Trust.CAUSE, "encountered in worker", r"unexpected .{0,40} in worker"
    ),
    rule(F.DATALOADER_WORKER, Trust.CAUSE, "received 0 items of ancdata|unable to mmap"),
    rule(
        F.DATALOADER_WORKER,
        Trust.CAUSE,
        "shared memory|torch_|shm_open|/dev/shm|torch_shm_manager",
        r"(?:insufficient|out of) shared memory|unable to (?:open|write|resize).{0,40}"
        r"(?:shared memory|</?torch_)|shm_open.{0,60}fail|torch_shm_manager|"
        r"shared memory (?:limit|object|manager).{0,80}(?:fail|error|no such)",
    ),
    rule(
        F.DATALOADER_WORKER,
        Trust.EXCEPTION,
        "in dataloader worker|in pin memory thread",
        r"caught \w+ in (?:dataloader worker|pin memory thread)",
    ),
    rule(
        F.DATALOADER_WORKER,
        Trust.CAUSE,
        "dataloader timed out|pin memory thread exited|worker (pid",
        r"dataloader timed out|pin memory thread exited unexpectedly|"
        r"worker \(pid\S* \d+\) .{0,20}(?:exited|killed)",
    ),
    rule(
        F.DATALOADER_WORKER,
        Trust.CAUSE,
        "one of the subprocesses has abruptly died",
    ),
)
