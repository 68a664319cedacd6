"""A real drill on a real Slurm: one fault inside a rank, one by the user's own hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from submitrain.launcher.drill.cli import hold
from submitrain.launcher.drill.plan import plan_drill
from tests.cluster.cluster import SlurmCluster
from tests.cluster.fixtures import require_slurm
from tests.cluster.options import ClusterOptions
from tests.tiny import tiny_config

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]


class Lines:
    """Keeps what the drill says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        """Keep it."""
        self.said.append(line)

    def doing(self, text: str) -> None:
        """Forget it."""


def test_a_drill_on_slurm_kills_a_rank_and_requeues_its_own_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    options = ClusterOptions(nodes=2, accounting=False)
    require_slurm(options)
    slurm = {"nodes": 2, "ntasks_per_node": 1, "time": "10m", "cpus_per_task": 1}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tmp_path, slurm=slurm)))
    with SlurmCluster.start(options) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        plan = plan_drill(str(config), cluster="slurm", steps=8, faults="kill,requeue")
        screen = Lines()
        report = hold(plan, screen)
    assert report.ok, (report.sentence, [(o.id, o.result, o.why) for o in report.outcomes])
    _, kill, requeue = report.outcomes
    assert (kill.injections[0].host, kill.cause) == ("node2", "rank_died")
    assert (requeue.cause, requeue.action) == ("requeued", "leave")
    assert requeue.recoveries[0].seconds["restarted"] > kill.recoveries[0].seconds["restarted"]
    assert any("requeued in step" in line for line in screen.said)
