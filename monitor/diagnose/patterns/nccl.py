"""NCCL, RCCL and gloo collectives. The word NCCL alone is no error.

Sources: torch's ProcessGroupNCCL.cpp and NCCLUtils.hpp, NCCL's src/misc/socket.cc, net_ib.cc and
src/debug.cc (``NCCL WARN``), gloo's transport/tcp.
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

NCCL_RULES = (
    rule(
        F.NCCL_TIMEOUT,
        Trust.VICTIM,
        "watchdog|nccl operations|collective",
        r"watchdog caught collective operation timeout|detected by watchdog at work|"
        r"watchdog.{0,20} got stuck|watchdog thread terminated|"
        r"some nccl operations have failed or timed out|"
        r"(?:caught|due to a?|received).{0,40}collective (?:operation )?timeout|"
        r"collective .{0,80}timed? ?out",
        any_level=True,
    ),
    rule(
        F.NCCL_TIMEOUT,
        Trust.VICTIM,
        "timeout at nccl|work timeout|before timing out",
        any_level=True,
    ),
    rule(
        F.NCCL_TIMEOUT,
        Trust.VICTIM,
        "monitoredbarrier|wait timeout|socket timeout|timed out waiting|barrier",
        r"monitoredbarrier|wait timeout after \d+ ?ms|socket timeout\b|"
        r"timed out waiting \d+ ?ms for (?:recv|send)|barrier.{0,40}timed out",
    ),
    rule(
        F.NCCL_TIMEOUT,
        Trust.VICTIM,
        "nccl|rccl",
        r"\b[nr]ccl\b.{0,80}(?:timed out|timeout)(?!\s*[=:(])(?!.{0,12}(?:set|environment|"
        r"variable))"
        r"(?<!_timeout)",
    ),
    rule(
        F.NCCL_ERROR,
        Trust.CAUSE,
        "nccl warn",
        r"nccl warn .{0,40}(?:got completion .{0,60}(?:error|status)|ibv_\w+.{0,80}(?:fail|error)|"
        r"call to ib\w+ .{0,60}fail|async fatal event|no device found|"
        r"error while (?:creating|attaching)|posix_fallocate|duplicate gpu|"
        r"cuda failure(?! .?out of memory)|unhandled|mismatch|invalid|wrong|"
        r"unable to (?:open|find|load)|failed to (?:find|initialize|register|open))",
        any_level=True,
    ),
    rule(F.NCCL_ERROR, Trust.CAUSE, "duplicate gpu detected", any_level=True),
    rule(
        F.NCCL_ERROR,
        Trust.VICTIM,
        "nccl warn",
        r"nccl warn .{0,200}(?:closed|fail|timed? ?out|error|refused|reset by|no route|abort)",
        any_level=True,
    ),
    rule(
        F.NCCL_ERROR,
        Trust.CAUSE,
        "ncclsystemerror|ncclinternalerror|ncclunhandledcudaerror|ncclinvalidusage|"
        "ncclinvalidargument|unhandled system error|unhandled cuda error|rcclsystemerror",
        any_level=True,
    ),
    rule(
        F.NCCL_ERROR,
        Trust.VICTIM,
        "ncclremoteerror|remote process exited|communicator was aborted|ncclcommabort|"
        "nccl communicator aborted|nccl comm was aborted",
        any_level=True,
    ),
    rule(
        F.NCCL_ERROR,
        Trust.CAUSE,
        "nccl error|nccl failure|error nccl|nccl_error|nccl2 error",
        r"(?:nccl error|nccl failure|nccl_error)(?!.{0,120}remote process exited)"
        r"(?!\S*(?:handling|_block))",
    ),
    rule(
        F.NCCL_ERROR,
        Trust.VICTIM,
        "distbackenderror|remote peer",
        r"distbackenderror|connection closed by remote peer",
    ),
    rule(
        F.NCCL_ERROR,
        Trust.CAUSE,
        "ibv_|libibverbs|infiniband|mlx5|ib device|openib",
        r"mlx5_.{0,80}(?:error|fail|syndrome|timeout|link down)|"
        r"ibv_\w+.{0,40}(?:failed|error)(?!.*fork)|infiniband.{0,40}(?:link down|port error)",
    ),
)
