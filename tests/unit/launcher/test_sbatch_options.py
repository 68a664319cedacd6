"""Every long option of sbatch is known: a key of its own, passed on, or refused with the reason."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from submitrain.config.job import SlurmConfig
from submitrain.errors import ConfigError
from submitrain.launcher.plan.sbatch import KEYS, PASSED_ON, REFUSED, script_text
from tests.config_parts import load, plan

MANUAL = Path("/usr/share/man/man1/sbatch.1.gz")
_CONF = "ClusterName=x\nSlurmctldHost=localhost\nNodeName=n1\nPartitionName=p Nodes=n1\n"


def installed_options(folder: Path) -> set[str]:
    """Long options by the installed sbatch's own help and manual."""
    conf = folder / "slurm.conf"
    conf.write_text(_CONF)
    done = subprocess.run(
        ["sbatch", "--help"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "SLURM_CONF": str(conf)},
        check=True,
    )
    found = set(re.findall(r"--([a-z][a-z-]+)", done.stdout))
    if MANUAL.exists():
        text = re.sub(r"\\f[A-Z]", "", gzip.decompress(MANUAL.read_bytes()).decode())
        lines = re.findall(r"^(?:-\w, )?--([a-z][a-z-]+)", text.replace("\\-", "-"), re.MULTILINE)
        found |= set(lines)
    return found


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no sbatch here")
def test_every_option_of_the_installed_sbatch_is_known(tmp_path: Path) -> None:
    found = installed_options(tmp_path)
    assert len(found) > 90
    assert found - PASSED_ON - KEYS.keys() - REFUSED.keys() == set()


def test_an_option_has_one_place_and_a_key_exists() -> None:
    assert not PASSED_ON & KEYS.keys()
    assert not (PASSED_ON | KEYS.keys()) & REFUSED.keys()
    assert set(KEYS.values()) <= set(SlurmConfig.model_fields)


@pytest.mark.parametrize("option", sorted(PASSED_ON))
def test_what_is_passed_on_is_in_the_batch_script(option: str) -> None:
    shown = plan({"slurm": {"additional_parameters": {option.replace("-", "_"): "7"}}})
    assert f"#SBATCH --{option}=7\n" in script_text(shown.sbatch, Path("/runs/a/submitit"))


@pytest.mark.parametrize("option", sorted(REFUSED))
def test_what_is_refused_says_why(option: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(REFUSED[option])):
        load({"slurm": {"additional_parameters": {option: "7"}}})


@pytest.mark.parametrize("option", sorted(KEYS))
def test_what_has_a_key_is_sent_there(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"write slurm\.{KEYS[option]}\b"):
        load({"slurm": {"additional_parameters": {option: "7"}}})


@pytest.mark.parametrize(
    ("slurm", "says"),
    [
        ({"additional_parameters": {"licences": "a"}}, "did you mean licenses?"),
        ({"additional_parameters": {"mail_typ": "END"}}, "did you mean mail-type?"),
        ({"additional_parameters": {"mem_per_gpu": "8G"}, "mem": "9G"}, "got slurm.mem too"),
        ({"array": "0-3"}, "for many runs use a sweep"),
    ],
)
def test_slips_are_refused(slurm: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"slurm": slurm})
    assert says in str(caught.value)


def test_nodes_may_be_shared_with_ones_own_jobs() -> None:
    shown = plan({"slurm": {"exclusive": "user"}})
    assert "#SBATCH --exclusive=user\n" in script_text(shown.sbatch, Path("/runs/a/submitit"))
