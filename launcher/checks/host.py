"""What this host offers a run: containers, InfiniBand, modules, Python, the clock, the network."""

from __future__ import annotations

import ctypes
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from submitrain.launcher.checks.finding import Finding, fail, ok, unknown, warn
from submitrain.launcher.checks.folders import Mount, is_shared
from submitrain.launcher.checks.node_system import Port
from submitrain.slurm.client import PYXIS_OPTION, Answer, Ask, ask, srun_help

CONTAINER_PROGRAMS = ("apptainer", "singularity", "enroot", "podman")
PACKAGES = ("torch", "transformers", "submitit")
CONNECT_S = 2.0
_ASK_S = 3.0
_TIMEX_BYTES, _STATUS_OFFSET, _STA_UNSYNC = 512, 40, 0x40
"""struct timex of 64-bit Linux is 208 bytes; ``status`` is its sixth field (adjtimex(2))."""


def read_containers(*, needed: bool, run: Ask = ask) -> Finding:
    """Ask srun, and look into PATH."""
    found = [name for name in CONTAINER_PROGRAMS if shutil.which(name)]
    return judge_containers(srun_help(run=run, timeout_s=_ASK_S), found, needed=needed)


def judge_containers(help_of_srun: Answer, found: Sequence[str], *, needed: bool) -> Finding:
    """Whether ranks can be started in an image: by srun itself (pyxis), or by Apptainer.

    ``needed``: the configuration names an image.
    """
    id = "containers"
    there = f"in PATH: {', '.join(found)}" if found else "no container program in PATH"
    if PYXIS_OPTION in help_of_srun.out:
        return ok(id, f"srun has --container-image (pyxis); {there}")
    if help_of_srun.code is None and "cannot be run" not in help_of_srun.error:
        return unknown(id, f"`srun --help` does not answer; {there}", "try it by hand")
    evidence = f"srun has no --container-image; {there}"
    if not needed:
        return ok(id, evidence)
    if {"apptainer", "singularity"} & set(found):
        return ok(id, f"{evidence}: ranks are started by {found[0]} (slurm.container_runtime)")
    evidence = f"slurm.container_image is set, and {evidence}"
    if found:
        remedy = "ask the site for pyxis or Apptainer: ranks are not started in an image otherwise"
        return warn(id, evidence, remedy)
    return fail(
        id, evidence, "ask the site for pyxis or Apptainer, or remove slurm.container_image"
    )


def judge_rdma(ports: Sequence[Port], *, on_nodes: bool) -> Finding:
    """Whether a link for RDMA is up on this host.

    ``on_nodes``: jobs run on other machines, which may have what this one has not.
    """
    id = "infiniband"
    if not ports and not on_nodes:
        return ok(id, "no InfiniBand or RoCE device on this machine, which needs none for itself")
    if not ports:
        said = "no InfiniBand or RoCE device on this host; compute nodes may have some"
        elsewhere = "`srun -p PARTITION cat /sys/class/infiniband/*/ports/*/state` asks one of them"
        return unknown(id, said, elsewhere)
    told = "; ".join(f"{p.name} {p.layer} {p.state} {p.rate}".strip() for p in ports)
    if any(port.state == "ACTIVE" for port in ports):
        return ok(id, told)
    remedy = "`ibstat` and the cabling: NCCL would fall back to TCP here"
    return warn(id, f"no port is active: {told}", remedy)


def check_modules(environ: Mapping[str, str], *, needed: bool) -> Finding:
    """Environment modules of this shell, by their variables: ``module`` is a shell function.

    ``needed``: slurm.setup loads modules.
    """
    id = "modules"
    found = {name: environ[name] for name in ("LMOD_CMD", "MODULESHOME") if environ.get(name)}
    told = ", ".join(f"{name}={path}" for name, path in found.items())
    if broken := [name for name, path in found.items() if not Path(path).exists()]:
        remedy = "log in anew, or source the site's /etc/profile.d/modules.sh"
        return warn(id, f"{told}: {', '.join(broken)} does not exist", remedy)
    if found:
        return ok(id, told)
    said = "neither LMOD_CMD nor MODULESHOME is set: no modules, or no login shell"
    if needed:
        remedy = "put `source /etc/profile.d/modules.sh` before `module load` in slurm.setup"
        return warn(id, f"slurm.setup loads modules, and {said}", remedy)
    return unknown(id, said, "not needed, unless slurm.setup loads modules")


def judge_python(
    prefix: str, mount: Mount | None, versions: Mapping[str, str], *, on_nodes: bool, inside: bool
) -> Finding:
    """The Python environment; ``on_nodes``: jobs on other machines use it.

    ``inside``: ranks run in a container, with an environment of their own.
    """
    id, kind = "python", mount.type if mount else "unknown"
    told = ", ".join(f"{name} {versions.get(name, 'missing')}" for name in PACKAGES)
    evidence = f"{prefix} on {kind}; {told}"
    missing = [name for name in PACKAGES if name not in versions]
    if missing and not inside:
        return fail(id, evidence, f"install {' and '.join(missing)} in this environment")
    if on_nodes and is_shared(kind) is False:
        return warn(
            id,
            f"{evidence}; {kind} is local to one machine",
            "unless all nodes have the same there, make the environment on a shared file system",
        )
    if on_nodes and is_shared(kind) is None:
        proof = f"`srun -N2 ls {prefix}/bin/python` shows whether nodes see it"
        return unknown(id, f"{evidence}; whether nodes see it is not known", proof)
    return ok(id, evidence)


def judge_clock(synchronized: bool | None, source: str) -> Finding:
    """Whether the clock follows others."""
    if synchronized is None:
        return unknown("clock", f"no word on synchronization ({source})", "`chronyc tracking`")
    if synchronized:
        return ok("clock", f"synchronized ({source})")
    remedy = "start chronyd or ntpd: munge refuses credentials, logs of nodes do not line up"
    return warn("clock", f"not synchronized ({source})", remedy)


def read_clock(*, run: Ask = ask) -> Finding:
    """Ask systemd, and else the kernel itself."""
    answer = run(["timedatectl", "show", "--property=NTPSynchronized", "--value"], timeout_s=1.5)
    if answer.code == 0 and answer.out.strip() in ("yes", "no"):
        return judge_clock(answer.out.strip() == "yes", "timedatectl")
    return judge_clock(_kernel_synchronized(), "adjtimex")


def _kernel_synchronized() -> bool | None:
    """What adjtimex(2) says of the clock; None where it may not be asked."""
    if ctypes.sizeof(ctypes.c_long) != 8:
        return None
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (AttributeError, OSError):
        return None
    if state < 0:
        return None
    status = int.from_bytes(timex.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little")
    return not status & _STA_UNSYNC


@dataclass(frozen=True)
class Endpoint:
    """A service: its address, and how to do without it (``offline``)."""

    id: str
    url: str
    offline: str
    unused: str = ""
    """Why nothing will be asked of it; empty when something will."""


def endpoints(environ: Mapping[str, str], *, wandb: str | None) -> list[Endpoint]:
    """The hub, and W&B where it is used; ``wandb`` is its mode ("" for its own choice) or None."""
    hub_off = environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true")
    found = [
        Endpoint(
            "network.hub",
            environ.get("HF_ENDPOINT") or "https://huggingface.co",
            "fill HF_HOME where there is a network, and set HF_HUB_OFFLINE=1 with the same HF_HOME",
            "HF_HUB_OFFLINE is set" if hub_off else "",
        )
    ]
    if wandb is not None:
        mode = wandb or environ.get("WANDB_MODE", "")
        unused = f"W&B's mode is {mode}" if mode in ("offline", "disabled") else ""
        url = environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
        offline = "set wandb.mode: offline, and `wandb sync` later"
        found.append(Endpoint("network.wandb", url, offline, unused))
    return found


def connect(endpoint: Endpoint) -> Finding:
    """Connect by TCP, to the proxy where the environment names one."""
    id, url = endpoint.id, endpoint.url
    if endpoint.unused:
        return ok(id, f"not asked: {endpoint.unused}")
    parts = urlsplit(url)
    try:
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        to = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else parts
        host, port = to.hostname, to.port or (443 if to.scheme == "https" else 80)
    except ValueError:  # a port that is no number
        host = None
    if parts.scheme not in ("http", "https") or not parts.hostname or not host:
        said = f"{url} is no address: expected https://HOST[:PORT]"
        return unknown(id, said, "correct HF_ENDPOINT or WANDB_BASE_URL")
    via = f"{'proxy ' if proxy else ''}{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return ok(id, f"{url} answers ({via}); compute nodes may differ")
    except TimeoutError:
        problem = f"no connection within {CONNECT_S:g} s"
    except OSError as error:
        problem = error.strerror or str(error)
    return warn(id, f"{url}: {problem} ({via})", endpoint.offline)
