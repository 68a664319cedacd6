"""Whether this host reaches the services that a training talks to: judged, and connected to."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from launcher.assess.finding import Finding, ok, unknown, warn

CONNECT_S = 2.0
_YES = frozenset(["1", "on", "yes", "true"])


@dataclass(frozen=True)
class Endpoint:
    """A service: its address, and what does without it (``offline`` says how)."""

    id: str
    url: str
    offline: str
    is_offline: str = ""
    """Why nothing will be asked of it; empty when something will."""


def endpoints(environ: Mapping[str, str], *, wandb: str | None) -> list[Endpoint]:
    """The hub, and W&B where it is used; ``wandb`` is its mode ("" for its own choice) or None."""
    hub_off = environ.get("HF_HUB_OFFLINE", "").lower() in _YES
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
        quiet = f"W&B's mode is {mode}" if mode in ("offline", "disabled") else ""
        url = environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
        offline = "set wandb.mode: offline, and `wandb sync` later"
        found.append(Endpoint("network.wandb", url, offline, quiet))
    return found


def judge_endpoint(endpoint: Endpoint, via: str, problem: str | None) -> Finding:
    """Judge one service: ``problem`` None when a connection ``via`` host and port came about."""
    if problem is None:
        return ok(endpoint.id, f"{endpoint.url} answers ({via}); compute nodes may differ")
    return warn(endpoint.id, f"{endpoint.url}: {problem} ({via})", endpoint.offline)


def look_at_endpoint(endpoint: Endpoint) -> list[Finding]:
    """Connect by TCP, to the proxy where the environment names one."""
    if endpoint.is_offline:
        return [ok(endpoint.id, f"not asked: {endpoint.is_offline}")]
    target = _target(endpoint.url)
    if target is None:
        said = f"{endpoint.url} is no address: expected https://HOST[:PORT]"
        return [unknown(endpoint.id, said, "correct HF_ENDPOINT or WANDB_BASE_URL")]
    host, port, via = target
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return [judge_endpoint(endpoint, via, None)]
    except TimeoutError:
        return [judge_endpoint(endpoint, via, f"no connection within {CONNECT_S:g} s")]
    except OSError as error:
        return [judge_endpoint(endpoint, via, error.strerror or str(error))]


def _target(url: str) -> tuple[str, int, str] | None:
    """Host and port to connect to, and how to call them."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    proxy = None if proxy_bypass(parts.hostname) else getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    if not parts.hostname:
        return None
    return parts.hostname, port, f"{'proxy ' if proxy else ''}{parts.hostname}:{port}"
