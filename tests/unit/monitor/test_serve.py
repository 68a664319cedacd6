"""``python -m monitor serve``: a process, scraped by a real Prometheus; its rules by promtool."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from submitrain.monitor.serve.service import Service
from submitrain.monitor.watch.fleet import Fleet
from submitrain.run_folder import list_runs
from submitrain.status import RunState
from tests.cluster.ports import free_ports
from tests.fleet_parts import fire, living, process, run_named, slurm_shim, wait_for
from tests.supervised import REPOSITORY

CONFIGS = REPOSITORY / "configs/monitoring"
RULES = CONFIGS / "prometheus-rules.yaml"
DASHBOARD = CONFIGS / "grafana-dashboard.json"
NAME = re.compile(r"\bsubmitrain_[a-z_]+\b")
NEEDS_SLURM = {"submitrain_scheduler_up"}
"""Metrics that are there only while a run of Slurm is."""
prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Debian's prometheus: tests/install-debian-packages --tests",
)
Samples = dict[str, list[tuple[dict[str, str], float]]]


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> Samples:
    """Labels and value of every sample, by its name."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            found.setdefault(one.name, []).append((one.labels, one.value))
    return found


def served(fleet: Fleet) -> Samples:
    """What is answered after one look, over a real socket."""
    with closing(Service(fleet, interval_s=5.0)) as service:
        url = service.listen("127.0.0.1", 0)
        assert service.poll() == ""
        return samples(fetch(f"{url}/metrics")[1])


def value(found: Samples, name: str, **labels: str) -> float:
    """The only sample of that name with these labels."""
    [one] = [v for own, v in found[name] if labels.items() <= own.items()]
    return one


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and its URL."""
    child = subprocess.Popen(
        [sys.executable, "-m", "monitor", "serve", *arguments, "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        yield child, line.removeprefix("serving ").strip().removesuffix("/metrics")
    finally:
        child.terminate()
        child.communicate(timeout=60)


class Clock:
    """The time of day, or later."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


def test_every_metric_of_the_dashboard_and_the_rules_is_served(tmp_path: Path) -> None:
    with process() as pid:
        fire(living(tmp_path, "llama", pid))
        found = served(Fleet(find=lambda: list_runs(tmp_path)))
    named = set(NAME.findall(DASHBOARD.read_text())) | set(NAME.findall(RULES.read_text()))
    assert len(named) > 20
    assert named - NEEDS_SLURM <= set(found)


def test_a_run_is_told_with_its_numbers_and_whose_it_is(tmp_path: Path) -> None:
    with process() as pid:
        run = living(tmp_path, "llama", pid)
        fire(run)
        found = served(Fleet(find=lambda: list_runs(tmp_path)))
    run_id = run.dir.run_id
    expected = {
        "attempt": 2,
        "step": 20,
        "steps_planned": 100,
        "loss": 2.0,
        "validation_loss": 1.5,
        "learning_rate": 1e-4,
        "tokens_per_second": 12345,
        "memory_bytes": 7e10,
        "eta_seconds": 8.0,
        "checkpoint_step": 20,
        "checkpoint_bytes": 1e6,
        "checkpoint_save_seconds": 2.5,
    }
    assert {name: value(found, f"submitrain_{name}", run=run_id) for name in expected} == expected
    assert value(found, "submitrain_run_state", run=run_id, state="running") == 1
    assert sum(v for _, v in found["submitrain_run_state"]) == 1
    info = {"attempt": "2", "job": "2", "user": "ada", "account": "physics", "cluster": "local"}
    assert value(found, "submitrain_run_info", run=run_id, **info) == 1
    assert value(found, "submitrain_restarts_total", run=run_id, cause="hung") == 1
    assert value(found, "submitrain_alerts_firing", rule="disk", severity="critical") == 1
    assert value(found, "submitrain_node_step", node="n1", attempt="2") == 20
    assert value(found, "submitrain_node_step", node="n2", attempt="2") == 19
    spent = sum(v for labels, v in found["submitrain_goodput_seconds"])
    assert spent > 0
    assert value(found, "submitrain_gpu_seconds") == pytest.approx(spent, abs=1e-4)


def test_a_loss_that_is_not_a_number_is_told_as_one(tmp_path: Path) -> None:
    with process() as pid:
        living(tmp_path, "llama", pid).steps(21, 21, loss="nan")
        found = served(Fleet(find=lambda: list_runs(tmp_path)))
    loss = value(found, "submitrain_loss")
    assert loss != loss


def test_runs_leave_after_their_end_and_the_rest_is_capped_and_counted(tmp_path: Path) -> None:
    with process() as pid:
        for number in range(4):
            living(tmp_path, f"living{number}", pid)
        for number in range(3):
            old = run_named(tmp_path, f"old{number}")
            old.steps(1, 1)
            old.finish()
        clock = Clock()
        fleet = Fleet(find=lambda: list_runs(tmp_path), keep_ended_s=600.0, max_runs=5, clock=clock)
        early = fleet.poll()
        assert [v.status.state for v in early.runs] == [RunState.RUNNING] * 4 + [RunState.FINISHED]
        assert (early.over_limit, early.long_ended) == (2, 0)
        clock.ahead_s = 700.0
        late = fleet.poll()
        assert [view.status.state for view in late.runs] == [RunState.RUNNING] * 4
        assert (late.over_limit, late.long_ended) == (0, 3)
        # A run that is resumed comes back.
        (next(tmp_path.glob("old0*")) / "summary.json").unlink()
        assert len(fleet.poll().runs) == 5


@pytest.mark.parametrize("count", [1, 10, 200])
def test_the_scheduler_is_asked_once_a_look_and_never_by_a_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    shim = tmp_path / "bin"
    shim.mkdir()
    calls = slurm_shim(shim)
    monkeypatch.setenv("PATH", f"{shim}:{os.environ['PATH']}")
    runs = tmp_path / "runs"
    for number in range(count):
        run_named(runs, f"r{number}").submit(cluster="slurm", job_id=str(100 + number))
    fleet = Fleet(find=lambda: list_runs(runs))
    with closing(Service(fleet, interval_s=5.0)) as service:
        url = service.listen("127.0.0.1", 0)
        for _ in range(2):
            service.poll()
        found = samples(fetch(f"{url}/metrics")[1])
        assert fetch(f"{url}/metrics")[0] == 200
    assert calls() == ["squeue", "squeue"]
    assert value(found, "submitrain_runs", state="queued") == count
    assert value(found, "submitrain_scheduler_up") == 1


def test_the_endpoint_says_when_it_cannot_see_and_leaves_at_term(tmp_path: Path) -> None:
    with serving("--runs-dir", str(tmp_path), "--interval", "0.2") as (child, url):
        wait_for(lambda: fetch(f"{url}/healthz")[0] == 200)
        assert fetch(f"{url}/other")[0] == 404
        looks = "submitrain_exporter_looks_total"
        wait_for(lambda: samples(fetch(f"{url}/metrics")[1])[looks][0][1] > 2)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_health_fails_without_a_good_look(tmp_path: Path) -> None:
    def find() -> list[Path]:
        raise OSError("stale file handle")

    with closing(Service(Fleet(find=find), interval_s=5.0)) as service:
        url = service.listen("127.0.0.1", 0)
        assert fetch(f"{url}/healthz") == (503, "no poll yet\n")
        assert "stale file handle" in service.poll()
        assert fetch(f"{url}/healthz")[0] == 503
        found = samples(fetch(f"{url}/metrics")[1])
    assert value(found, "submitrain_exporter_failed_looks_total") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port: expected 0 to 65535, got 70000"),
        (["--bind", "192.0.2.1"], "choose another port"),
        (["--interval", "0"], "--interval: expected seconds > 0"),
        (["--max-runs", "0"], "--max-runs: expected a number >= 1"),
        (["--keep-ended", "soon"], "--keep-ended: "),
        (["latest"], "run: no run latest: there is none in "),
        (["latest", "--all"], "not both"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    from submitrain.monitor.cli import main

    assert main(["serve", "--runs-dir", str(tmp_path), "--port", "0", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from submitrain.monitor.cli import main

    for name in [name for name in sys.modules if name.startswith("submitrain.monitor.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # "not there"
    assert main(["serve"]) == 2
    assert "pip install 'submitrain[prometheus]'" in capsys.readouterr().err


@prometheus
def test_the_rules_are_valid_and_fire_when_they_have_to(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", RULES], check=True, capture_output=True)
    text = (REPOSITORY / "tests/data/prometheus-rules-test.yaml").read_text()
    test = tmp_path / "test.yaml"
    test.write_text(text.replace("RULES", str(RULES)))
    done = subprocess.run(
        ["promtool", "test", "rules", test], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@prometheus
def test_a_real_prometheus_scrapes_and_evaluates(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with process() as pid, serving("--runs-dir", str(runs), "--interval", "1") as (_, url):
        run = living(runs, "llama", pid)
        failed = run_named(runs, "broken")
        failed.finish("failed", "no space left")
        wait_for(lambda: "broken" in fetch(f"{url}/metrics")[1])
        metrics = fetch(f"{url}/metrics")[1]
        lint = ["promtool", "check", "metrics"]
        subprocess.run(lint, input=metrics, text=True, check=True, capture_output=True)
        with prometheus_server(tmp_path, url) as api:
            step = wait_for(lambda: query(api, "submitrain_step"))
            assert {one["metric"]["run"]: one["value"][1] for one in step}[run.dir.run_id] == "20"
            assert query(api, 'up{job="submitrain"}')[0]["value"][1] == "1"
            alerts = wait_for(lambda: json.loads(fetch(f"{api}/alerts")[1])["data"]["alerts"])
            assert [one["labels"]["alertname"] for one in alerts] == ["SubmitrainRunFailed"]
            assert alerts[0]["labels"]["run"] == failed.dir.run_id
            for panel in json.loads(DASHBOARD.read_text())["panels"]:
                for target in panel["targets"]:
                    query(api, target["expr"].replace("$run", ".*"))


@contextmanager
def prometheus_server(folder: Path, url: str) -> Iterator[str]:
    """A Prometheus that scrapes ``url`` with our rules; the address of its API."""
    [port] = free_ports(1)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "submitrain",
                "static_configs": [{"targets": [url.removeprefix("http://")]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("wb") as log:
        child = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        ready = f"http://127.0.0.1:{port}/-/ready"
        wait_for(lambda: _answers(ready))
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        child.terminate()
        child.wait(60)


def _answers(url: str) -> bool:
    try:
        return fetch(url)[0] == 200
    except OSError:
        return False


def query(api: str, expression: str) -> list[dict[str, Any]]:
    """The result of an expression, which has to be a valid one."""
    _, text = fetch(f"{api}/query?{urllib.parse.urlencode({'query': expression})}")
    answer = json.loads(text)
    assert answer["status"] == "success", (expression, answer)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found
