"""Measures one node, from inside. The edge to its files, limits and programs; stdlib only.

Nothing here may hang: what touches the shared folder runs in a thread that is left behind when it
does not return, and every program has a time limit.
"""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from submitrain.imports import IMPORT_ROOT
from submitrain.launcher.checks.node_facts import (
    UNLIMITED,
    Gpu,
    Limits,
    Names,
    NodeFacts,
    NvLink,
    Port,
    Request,
    SharedFolder,
    SharedMemory,
    Software,
    Unknown,
    Xid,
)
from submitrain.launcher.checks.node_gpu import (
    QUERY,
    parse_gpus,
    parse_nvlinks,
    parse_xids,
    ports_in,
)
from submitrain.launcher.submit.record import PACKAGES

FOLDER_S = 15.0
"""Seconds for reading and writing in the shared folder, all together."""
VISIBLE_S = 5.0
"""Seconds for a file of another node to become visible (NFS caches names)."""
PROGRAM_S = 20.0
REACH_S = 3.0
WRITE_BYTES = 2**20
"""What is written to the shared folder: more than a full disk has left in its last block."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Places:
    """Where the system shows itself; tests have other places."""

    shm: Path = Path("/dev/shm")
    infiniband: Path = Path("/sys/class/infiniband")
    modules: Path = Path("/sys/module")
    mounts: Path = Path("/proc/self/mountinfo")


def measure(request: Request, places: Places | None = None) -> NodeFacts:
    """Everything about this node."""
    at = places or Places()
    folder = _Folder(request, at)
    folder.begin()
    smi = _known(_gpus)
    facts = NodeFacts(
        node=request.node,
        shared=Unknown("not yet"),
        shm=_known(lambda: _shm(at.shm)),
        limits=_known(lambda: _limits(at.infiniband)),
        software=_known(lambda: _software(at)) if request.software else Unknown("not asked for"),
        gpus=smi,
        xids=Unknown("no NVIDIA GPU here") if isinstance(smi, Unknown) else _known(_xids),
        nvlinks=Unknown("no NVIDIA GPU here") if isinstance(smi, Unknown) else _known(_nvlinks),
        ports=_known(lambda: _ports(at.infiniband)),
        names=_known(lambda: _names(request)),
    )
    return NodeFacts(**{**facts.__dict__, "shared": folder.result()})


def _known(look: Callable[[], _T]) -> _T | Unknown:
    """What ``look`` finds, or why it finds nothing."""
    try:
        return look()
    except FileNotFoundError as error:
        return Unknown(f"{error.filename} is not there")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Unknown(f"{type(error).__name__}: {error}")


class _Folder:
    """The shared folder, read and written by a thread that may never return."""

    def __init__(self, request: Request, places: Places) -> None:
        self._request, self._places = request, places
        self._path = Path(request.folder)
        self._read: str | None = None
        self._write: tuple[str, float] | None = None
        self._space: tuple[int | None, int | None] = (None, None)
        self._until = 0.0
        self._thread = threading.Thread(target=self._look, name="folder", daemon=True)

    def begin(self) -> None:
        """Start to look."""
        self._until = time.monotonic() + FOLDER_S
        self._thread.start()

    def _look(self) -> None:
        with suppress(OSError):
            stat = os.statvfs(self._path)
            inodes = stat.f_favail if stat.f_files else None
            self._space = (stat.f_bavail * stat.f_frsize, inodes)
        self._write = _write(self._path, self._request)
        self._read = _read(self._path, self._request.token)

    def result(self) -> SharedFolder | Unknown:
        """What came of it within its time."""
        if not self._request.written:
            return Unknown("the first node could not write its own file there")
        self._thread.join(max(0.0, self._until - time.monotonic()))
        late = f"did not return within {FOLDER_S:.0f} s"
        written = self._write or (late, FOLDER_S)
        return SharedFolder(
            path=self._request.folder,
            read_error=late if self._read is None else self._read,
            write_error=written[0],
            write_s=round(written[1], 4),
            fs_type=_fs_type(self._path, self._places.mounts),
            free_bytes=self._space[0],
            free_inodes=self._space[1],
        )


def token_file(folder: Path, node: str) -> Path:
    """The file that a node writes; ``""`` is the first node as the one who asks."""
    return folder / f"{node or 'asker'}.token"


def _write(folder: Path, request: Request) -> tuple[str, float]:
    """Write and flush this node's file; the error, and the seconds that it took."""
    began = time.monotonic()
    path = token_file(folder, request.node)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            text = f"{request.token} {request.node}\n".encode()
            data = text + bytes(WRITE_BYTES)
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
            os.ftruncate(descriptor, len(text))
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error), time.monotonic() - began
    return "", time.monotonic() - began


def _read(folder: Path, token: str) -> str:
    """Why the asker's file does not show here with its token; empty when it does."""
    path, until = token_file(folder, ""), time.monotonic() + VISIBLE_S
    while True:
        why = read_token(path, token)
        if not why or time.monotonic() > until:
            return why
        time.sleep(0.1)


def read_token(path: Path, token: str) -> str:
    """Why a file does not hold ``token``; empty when it does."""
    with suppress(OSError):
        list(path.parent.iterdir())  # NFS: makes a cached "no such file" go away
    try:
        return "" if path.read_text().startswith(token) else "holds something else"
    except OSError as error:
        return error.strerror or str(error)


def _fs_type(folder: Path, mounts: Path) -> str:
    """Type of the file system of a folder, by the longest mount point (proc(5), mountinfo)."""
    best, found = -1, ""
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            before, _, after = line.partition(" - ")
            words = before.split()
            point = words[4].replace("\\040", " ") if len(words) > 4 else ""
            if point and folder.is_relative_to(point) and len(point) >= best:
                best, found = len(point), after.split()[0]
    return found


def _shm(path: Path) -> SharedMemory:
    stat = os.statvfs(path)
    error = ""
    probe = path / f"submitrain-preflight-{os.getpid()}"
    try:
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as problem:
        error = problem.strerror or str(problem)
    size = stat.f_frsize
    return SharedMemory(stat.f_blocks * size, stat.f_bavail * size, error)


def _limits(infiniband: Path) -> Limits:
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    nofile = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = resource.RLIM_INFINITY
    return Limits(
        memlock_bytes=UNLIMITED if memlock == unlimited else memlock,
        nofile=UNLIMITED if nofile == unlimited else nofile,
        rdma=infiniband.is_dir() and any(infiniband.iterdir()),
    )


def _software(places: Places) -> Software:
    return Software(
        python=sys.version.split()[0],
        code=_code_hash(),
        commit=_commit(),
        driver=_driver(places.modules),
        kernel=os.uname().release,
        packages=_packages(),
    )


def _code_hash() -> str:
    """Hash of the source files of our packages, as far as this process would import them."""
    digest = hashlib.sha256()
    for folder, _, names in sorted(os.walk(IMPORT_ROOT / "submitrain", followlinks=True)):
        for name in sorted(name for name in names if name.endswith(".py")):
            path = Path(folder, name)
            digest.update(str(path.relative_to(IMPORT_ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PROGRAM_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()[:12] if done.returncode == 0 else ""


def _driver(modules: Path) -> str:
    for name in ("nvidia", "amdgpu"):
        with suppress(OSError):
            return f"{name} {(modules / name / 'version').read_text().strip()}"
    return ""


def _packages() -> dict[str, str]:
    """Every installed package by its metadata's folder name; those that matter by the metadata."""
    found: dict[str, str] = {}
    for entry in reversed(sys.path):
        with suppress(OSError):
            for path in Path(entry or ".").iterdir():
                if path.suffix == ".dist-info":
                    name, _, number = path.stem.partition("-")
                    found[name.lower().replace("_", "-")] = number
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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


def _gpus() -> tuple[Gpu, ...]:
    fields = f"--query-gpu={','.join(QUERY)}"
    return parse_gpus(_run("nvidia-smi", fields, "--format=csv,noheader,nounits"))


def _xids() -> tuple[Xid, ...]:
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return parse_xids(_run("dmesg"), uptime_s=uptime)


def _nvlinks() -> tuple[NvLink, ...]:
    return parse_nvlinks(_run("nvidia-smi", "nvlink", "--status"))


def _ports(folder: Path) -> tuple[Port, ...]:
    return ports_in(folder)


def _names(request: Request) -> Names:
    host, own, missed = socket.gethostname(), "", {}
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        own = error.strerror or str(error)
    for name in request.hosts if request.port else ():
        missed[name] = why = _reach(name, request.port, request.token)
        if not why:
            del missed[name]
            return Names(host, own, name, missed)
    return Names(host, own, "", missed)


def _reach(name: str, port: int, token: str) -> str:
    """Why the asker does not answer at that name; empty when it does, with its token."""
    try:
        with socket.create_connection((name, port), timeout=REACH_S) as connection:
            connection.settimeout(REACH_S)
            said = connection.recv(len(token)).decode(errors="replace")
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return "" if said == token else "another host answers"
