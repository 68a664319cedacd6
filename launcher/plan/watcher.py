"""What ``monitor.autostart`` comes to: who watches a run, and with which resources. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from submitrain.config import RunConfig
from submitrain.config.alerts import LATE, WatcherJobConfig
from submitrain.config.placeholders import PlaceholderError, expand
from submitrain.config.types import format_duration
from submitrain.launcher.plan.sbatch import SETUP
from submitrain.text import counted

_CHANNELS = ("slack_webhook", "email_to", "pagerduty_key", "webhook_url", "apprise_url")


def watched_by(config: RunConfig, cluster: str) -> str:
    """``off``, ``sidecar`` or ``job``: without Slurm there is no job of its own."""
    wanted = config.monitor.autostart
    return "sidecar" if wanted == "job" and cluster != "slurm" else wanted


def watcher_sbatch(config: RunConfig) -> dict[str, Any]:
    """submitit's parameters of the watcher's job, less its name: light, and without GPUs."""
    job, slurm = config.monitor.job, config.slurm
    wanted = {
        "partition": job.partition or slurm.partition,
        "account": job.account or slurm.account,
        "qos": job.qos or slurm.qos,
        "time": -(-(job.time or slurm.time) // 60),
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": job.cpus,
        "mem": job.mem,
        "setup": list(SETUP),
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
    }
    return {key: value for key, value in wanted.items() if value is not None} | {"wckey": None}


def watcher_text(config: RunConfig, cluster: str) -> str:
    """Who watches, for people."""
    kind, job, slurm = watched_by(config, cluster), config.monitor.job, cluster == "slurm"
    if kind == "job":
        partition = job.partition or config.slurm.partition
        place = f", partition {partition}" if partition else ""
        limit = format_duration(job.time or config.slurm.time)
        return (
            f"a Slurm job of its own: {counted(job.cpus, 'CPU')}, {job.mem}{place}, {limit}, "
            "requeued until the run has ended"
        )
    if kind == "off":
        return "none: start `python -m monitor watch`, or set monitor.autostart"
    instead = config.monitor.autostart == "job" and not slurm
    why = "; there is no Slurm for a job of its own" if instead else ""
    where = "on the job's first node" if slurm else "on this machine"
    return f"a sidecar process of the supervisor, {where}{why}"


def watcher_warnings(config: RunConfig, environ: Mapping[str, str]) -> Iterator[str]:
    """What keeps a watcher from telling anybody anything."""
    if config.monitor.autostart == "off":
        return
    named = any(getattr(config.alerts, key) for key in _CHANNELS)
    if not named and not environ.get("EMAIL_ALERTS"):
        yield (
            f"monitor.autostart is {config.monitor.autostart} and section alerts names no channel: "
            "alerts go to alerts.jsonl only; set alerts.slack_webhook, email_to or another one"
        )
    for _, key in sorted(LATE):
        try:
            expand(str(getattr(config.alerts, key) or ""), environ)
        except PlaceholderError as error:
            yield f"alerts.{key}: {error}; the watcher has the environment of this launch"


def watcher_problems(config: RunConfig) -> Iterator[str]:
    """Settings that would have no effect, one line each, with the key first."""
    if config.monitor.job != WatcherJobConfig() and config.monitor.autostart != "job":
        yield (
            "monitor.job: expected monitor.autostart: job, which alone has a job, got "
            f"{config.monitor.autostart}; set that or remove this"
        )
