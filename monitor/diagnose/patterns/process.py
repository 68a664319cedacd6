"""How processes end: crashes in native code, exceptions of no specific class, exit codes.

Sources: CPython's faulthandler, torch's elastic/multiprocessing/{api,errors}, glibc's abort
messages, Open MPI's signal report, the kernel's ``segfault at`` lines.
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

EXCEPTION_LINE = (
    r"^(?:\S{1,40}: )?(?:[a-z_][\w]*\.)*[A-Z][A-Za-z0-9_]*"
    r"(?:Error|Exception|Failure|Timeout|NotFound|Interrupted|Expired)(?::\s|\s*$)|^Exception: |"
    r"^AssertionError"
)
"""The last line of a traceback: ``package.SomeError: message``."""

PROCESS_RULES = (
    rule(
        F.SEGFAULT,
        Trust.CAUSE,
        "segmentation fault|sigsegv|segfault|general protection|signal 11|signal: 11",
        r"segmentation fault|sigsegv|\bsegfault (?:at [0-9a-f]+ ip|encountered|in\b)|"
        r"general protection (?:fault|ip)|"
        r"signal:? ?11\b",
    ),
    rule(
        F.SEGFAULT,
        Trust.CAUSE,
        "exitcode|exit code|exit status|return code|status 139",
        r"(?:exit_?code|exit code|exited with code|exit status|"
        r"return code)\s*[:=]?\s*(?:139|-11)\b",
    ),
    rule(
        F.SEGFAULT,
        Trust.CAUSE,
        "bus error|sigbus|illegal instruction|sigill|floating point exception|sigfpe",
        r"fatal.{0,20}bus error|bus error(?: \(core dumped\)|\s*$)|sigbus|"
        r"illegal instruction|sigill\b|floating point exception|sigfpe",
    ),
    rule(
        F.SEGFAULT,
        Trust.CAUSE,
        "double free|free():|malloc():|munmap_chunk|corrupted double-linked|stack smashing|"
        "heap corruption|corrupted size vs|malloc_consolidate|realloc():",
    ),
    rule(
        F.SEGFAULT,
        Trust.EXIT,
        "aborted|sigabrt|core dumped|fatal python error|terminate called|exitcode|signal 6",
        r"fatal python error: aborted|\baborted\b.{0,20}core dumped|\(core dumped\)|sigabrt|"
        r"exit_?code\s*[:=]\s*(?:134|-6)\b|terminate called after throwing|signal:? ?6\b",
    ),
    rule(F.PYTHON_EXCEPTION, Trust.EXIT, "childfailederror|processraisedexception"),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXCEPTION,
        "error|exception|failure|timeout|notfound|interrupted|expired",
        EXCEPTION_LINE,
        exact_case=True,
    ),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXCEPTION,
        "exc.|exceptions.|errors.|runtime.|dynamo.|inductor.|compiler.",
        r"^(?:[a-z_]\w*\.){2,}[A-Z][A-Za-z]+: ",
        exact_case=True,
    ),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXCEPTION,
        "device-side assert|illegal memory access|cuda error|cudnn error|cublas",
        r"device-side assert|illegal memory access|cuda error:|cudnn error|cublas_status_(?!alloc)",
    ),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXCEPTION,
        "error executing job|uncaught exception|unhandled exception|fatal error",
        r"error executing job with|(?:uncaught|unhandled) exception|^fatal error",
    ),
    rule(F.PYTHON_EXCEPTION, Trust.EXIT, "traceback (most recent call last)"),
    rule(
        F.PYTHON_EXCEPTION,
        Trust.EXIT,
        "exitcode|exit code|exit status|return code|returned non-zero",
        r"(?:exit_?code|exit code|exited with (?:exit )?code|exit status|return code)\s*[:=]?\s*"
        r"(?:[1-9]\d?|1[01]\d|12[0-7])\b|returned non-zero exit status",
    ),
)
