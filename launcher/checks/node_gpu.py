"""Reads what nvidia-smi, the kernel's log and /sys say of GPUs and links.

Pure, but for ``ports_in``.

Sources: nvidia-smi(1) and ``nvidia-smi --help-query-gpu``; NVIDIA's "XID Errors" catalogue; the
kernel's Documentation/ABI/stable/sysfs-class-infiniband.
"""

from __future__ import annotations

import re
from pathlib import Path

from submitrain.launcher.checks.node_facts import Gpu, NvLink, Port, Xid

QUERY = (
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
XID_AGE_S = 24 * 3600.0
"""Seconds for which an Xid speaks against a node."""
_XID = re.compile(
    r"^(?:\[\s*(?P<t>\d+\.\d+)\]\s*)?.*NVRM: Xid \((?:PCI:)?(?P<device>[^)]+)\): (?P<code>\d+)"
)
_LINK = re.compile(r"^\s*Link (\d+):\s*(.+?)\s*$")
_GPU = re.compile(r"^GPU (\d+):")


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The lines of ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits``.

    Raises:
        ValueError: a line has other fields than asked for.
    """
    return tuple(_gpu(line) for line in text.splitlines() if line.strip())


def _gpu(line: str) -> Gpu:
    words = [word.strip() for word in line.split(",")]
    if len(words) != len(QUERY) or not words[0].isdigit():
        raise ValueError(f"nvidia-smi says {line.strip()[:80]!r}, expected {len(QUERY)} fields")
    index, name, uncorrected, remap, width, width_max = words
    failed = {"yes": True, "1": True, "no": False, "0": False}.get(remap.lower())
    return Gpu(
        index=int(index),
        name=name,
        uncorrected=_count(uncorrected),
        remap_failed=failed,
        pcie_width=_count(width),
        pcie_width_max=_count(width_max),
    )


def _count(word: str) -> int | None:
    """A number; ``[N/A]`` and ``[Not Supported]`` are None."""
    return int(word) if word.isdigit() else None


def parse_xids(text: str, *, uptime_s: float | None) -> tuple[Xid, ...]:
    """Xid lines of ``dmesg`` from the last 24 hours; all of them where no time is known."""
    found = []
    for line in text.splitlines():
        match = _XID.match(line.strip())
        if match is None:
            continue
        old = match["t"] is not None and uptime_s is not None
        if old and (uptime_s or 0.0) - float(match["t"]) > XID_AGE_S:
            continue
        found.append(Xid(int(match["code"]), match["device"], line.strip()[:200]))
    return tuple(found)


def parse_nvlinks(text: str) -> tuple[NvLink, ...]:
    """``nvidia-smi nvlink --status``: ``Link 3: 26.562 GB/s``, or ``Link 3: <inactive>``."""
    found, gpu = [], -1
    for line in text.splitlines():
        if match := _GPU.match(line):
            gpu = int(match[1])
        elif (match := _LINK.match(line)) and gpu >= 0:
            found.append(NvLink(gpu, int(match[1]), "inactive" not in match[2].lower()))
    return tuple(found)


def ports_in(folder: Path) -> tuple[Port, ...]:
    """Ports of the devices in ``/sys/class/infiniband``; none where there is no such folder.

    Raises:
        OSError: a port is there and does not tell its state.
    """
    if not folder.is_dir():
        return ()
    return tuple(_port(path) for path in sorted(folder.glob("*/ports/*")))


def _port(path: Path) -> Port:
    state = (path / "state").read_text().strip()  # "4: ACTIVE"
    rate = path / "rate"
    name = f"{path.parent.parent.name}/{path.name}"
    return Port(
        name, state.rpartition(":")[2].strip(), rate.read_text().strip() if rate.exists() else ""
    )
