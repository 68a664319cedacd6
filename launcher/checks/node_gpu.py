"""Preflight: the GPUs of a node and the links between them. Standard library only.

Sources: nvidia-smi(1) and ``nvidia-smi --help-query-gpu``; NVIDIA's "XID Errors" catalogue.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from submitrain.launcher.checks.finding import Check, Finding, fail, ok, once, unknown, warn
from submitrain.launcher.checks.node_request import NodeRequest

PROGRAM_S = 15.0
CHECK_S = 18.0
"""Seconds for one program, and for one check."""
_FIELDS = (
    "index",
    "name",
    "ecc.errors.uncorrected.volatile.total",
    "remapped_rows.failure",
    "pcie.link.width.current",
    "pcie.link.width.max",
)
"""Fields of ``nvidia-smi --query-gpu``, in the order of ``parse_gpus``."""
GRAVE_XIDS = {
    46: "GPU stopped processing",
    48: "double-bit ECC error",
    61: "internal micro-controller halt",
    62: "internal micro-controller halt",
    63: "row remapping event",
    64: "row remapping failure",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high single-bit ECC error rate",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP timeout",
    120: "GSP error",
    140: "unrecovered ECC error",
}
"""Codes for which the hardware is to blame; others (13, 31, 43, 45) are a program's own."""
_NVLINKS = ("nvidia-smi", "nvlink", "--status")
XID_AGE_S = 24 * 3600.0
"""Seconds for which an Xid speaks against a node."""
_XID = re.compile(r"^(?:\[\s*(\d+\.\d+)\]\s*)?.*NVRM: Xid \([^)]+\): (\d+)")
"""A line of the kernel's log: seconds since the boot, where they are shown, and the code."""


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where the device does not say."""

    index: int
    name: str
    uncorrected: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    remap_failed: bool | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None


def gpu_checks(request: NodeRequest) -> list[Check]:
    """The checks of this file."""
    wanted = request.gpus_per_node
    if not wanted:
        ids = ("gpu.count", "gpu.memory", "gpu.xid", "gpu.links")
        return [Check(id, partial(ok, id, "no GPUs asked for"), CHECK_S) for id in ids]
    gpus = once(read_gpus)
    return [
        Check("gpu.count", lambda: gpu_count(gpus(), wanted), CHECK_S),
        Check("gpu.memory", lambda: gpu_memory(gpus()), CHECK_S),
        Check("gpu.xid", lambda: gpu_xid(read_xids() if gpus() else ()), CHECK_S),
        Check("gpu.links", lambda: gpu_links(gpus(), parse_nvlinks(_run(*_NVLINKS))), CHECK_S),
    ]


def gpu_count(gpus: Sequence[Gpu], wanted: int) -> Finding:
    """As many GPUs as were asked for."""
    told = f"{len(gpus)} of {wanted} GPUs"
    if len(gpus) < wanted:
        return fail("gpu.count", f"nvidia-smi shows {told}", "report the node: a GPU is gone")
    return ok("gpu.count", f"{told}: {gpus[0].name}")


def gpu_memory(gpus: Sequence[Gpu]) -> Finding:
    """Uncorrected memory errors, and rows that cannot be remapped any more."""
    id, remedy = "gpu.memory", "report the GPU; it needs a reset, or to be replaced"
    for gpu in gpus:
        if gpu.remap_failed:
            return fail(id, f"GPU {gpu.index}: remapping a row of memory failed", remedy)
        if gpu.uncorrected:
            told = f"GPU {gpu.index}: {gpu.uncorrected} uncorrected errors since the driver started"
            return fail(id, told, remedy)
    if gpus and all(gpu.uncorrected is None for gpu in gpus):
        return unknown(id, f"{gpus[0].name} counts no errors (ECC is off, or it has none)")
    return ok(id, "no uncorrected error")


def gpu_xid(xids: Sequence[tuple[int, str]]) -> Finding:
    """Errors of the hardware in the kernel's log of the last 24 hours."""
    grave = [(code, line) for code, line in xids if code in GRAVE_XIDS]
    if grave:
        code, line = grave[-1]
        told = f"Xid {code} ({GRAVE_XIDS[code]}): {line}"
        return fail("gpu.xid", told, "report the GPU; the node needs a reset at least")
    return ok("gpu.xid", f"no hardware error in the kernel's log ({len(xids)} of programs)")


def gpu_links(gpus: Sequence[Gpu], links: Mapping[str, bool]) -> Finding:
    """NVLinks that are down, and PCIe slots with fewer lanes than they have.

    The generation of PCIe is not judged: it goes down while a GPU is idle.
    """
    id, down = "gpu.links", [name for name, active in links.items() if not active]
    if down and len(down) < len(links):
        told = f"{len(down)} of {len(links)} NVLinks are inactive ({', '.join(down[:4])})"
        return fail(id, told, "report the node: traffic between its GPUs goes another way")
    narrow = [
        f"GPU {one.index} x{one.pcie_width} of x{one.pcie_width_max}"
        for one in gpus
        if one.pcie_width and one.pcie_width_max and one.pcie_width < one.pcie_width_max
    ]
    if narrow:
        return warn(id, f"PCIe is narrow: {', '.join(narrow)}", "have the GPU reseated")
    return ok(id, f"{len(links)} NVLinks active" if links else "no NVLink; PCIe at full width")


def read_gpus() -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists."""
    query = f"--query-gpu={','.join(_FIELDS)}"
    return parse_gpus(_run("nvidia-smi", query, "--format=csv,noheader,nounits"))


def read_xids() -> list[tuple[int, str]]:
    """Codes and lines of the Xid errors of the last 24 hours."""
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return parse_xids(_run("dmesg"), uptime_s=uptime_s)


def _run(*command: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=PROGRAM_S,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(f"{command[0]} exited {done.returncode}: {said[-1] if said else ''}")
    return done.stdout


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The lines of ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits``.

    ``[N/A]`` and ``[Not Supported]`` are None.

    Raises:
        ValueError: a line has other fields than asked for.
    """

    found = []
    for line in filter(str.strip, text.splitlines()):
        words = [word.strip() for word in line.split(",")]
        if len(words) != len(_FIELDS) or not words[0].isdigit():
            said = line.strip()[:80]
            raise ValueError(f"nvidia-smi says {said!r}, expected {len(_FIELDS)} fields")
        failed = {"yes": True, "1": True, "no": False, "0": False}.get(words[3].lower())
        number = [int(word) if word.isdigit() else None for word in words]
        found.append(Gpu(int(words[0]), words[1], number[2], failed, number[4], number[5]))
    return tuple(found)


def parse_xids(text: str, *, uptime_s: float | None) -> list[tuple[int, str]]:
    """Codes and lines of ``dmesg`` from the last 24 hours; all of them where no time is known."""
    found = []
    for line in map(str.strip, text.splitlines()):
        if not (match := _XID.match(line)):
            continue
        age_s = uptime_s - float(match[1]) if uptime_s is not None and match[1] else 0.0
        if age_s <= XID_AGE_S:
            found.append((int(match[2]), line[:200]))
    return found


def parse_nvlinks(text: str) -> dict[str, bool]:
    """Whether each link of ``nvidia-smi nvlink --status`` is active, by ``GPU 0 link 3``.

    A line is ``Link 3: 26.562 GB/s``, or ``Link 3: <inactive>``, below that of its GPU.
    """
    found, gpu = {}, ""
    for line in text.splitlines():
        if match := re.match(r"GPU \d+(?=:)", line):
            gpu = match[0]
        elif gpu and (match := re.match(r"\s*Link (\d+):\s*(.+)", line)):
            found[f"{gpu} link {match[1]}"] = "inactive" not in match[2].lower()
    return found
