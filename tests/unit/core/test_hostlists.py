"""Host lists against ``scontrol show hostnames`` itself, which needs a slurm.conf and no daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from submitrain.slurm.parse import expand_nodes

LISTS_A_CALL = 25
MARK = "=next="
"""A host name between the lists that one shell asks about."""


@pytest.fixture(scope="session")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("scontrol") is None:
        pytest.skip("needs a real Slurm: sudo apt-get install --no-install-recommends slurm-client")
    path = tmp_path_factory.mktemp("slurm") / "slurm.conf"
    path.write_text("ClusterName=names\nSlurmctldHost=localhost\nNodeName=n1\n")
    return path


def hostnames(lists: Sequence[str], conf: Path) -> list[list[str]]:
    """What scontrol makes of each of many lists."""
    script = f'for one in "$@"; do scontrol show hostnames "$one" || exit 1; echo {MARK}; done'
    out = subprocess.run(
        ["sh", "-c", script, "sh", *lists],
        env={**os.environ, "SLURM_CONF": str(conf)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [text.split() for text in out.split(f"{MARK}\n")[:-1]]


WORDS = st.from_regex(r"[a-z]{1,4}(-[a-z]{1,3})?[0-9]{0,2}-?", fullmatch=True)


@st.composite
def ranges(draw: st.DrawFn) -> str:
    """``3``, ``007``, ``8-11``, ``08-11``, ``098-101``, ``5-5``."""
    first = draw(st.integers(0, 120))
    width = draw(st.integers(1, 4))
    if draw(st.booleans()):
        return str(first).zfill(width)
    last = first + draw(st.integers(0, 4))
    # An upper end may be padded less, or more, than the lower one.
    return f"{first:0{width}}-{last:0{draw(st.integers(1, width))}}"


BRACKETS = st.lists(ranges(), min_size=1, max_size=3).map(lambda some: f"[{','.join(some)}]")
BRACKETED = st.lists(st.tuples(WORDS, BRACKETS), min_size=1, max_size=3).map(
    lambda parts: "".join(f"{word}{numbers}" for word, numbers in parts)
)
HOST_LISTS = st.lists(WORDS | BRACKETED, min_size=1, max_size=4).map(",".join)


@pytest.mark.slurm
@given(lists=st.lists(HOST_LISTS, min_size=LISTS_A_CALL, max_size=LISTS_A_CALL))
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_host_list_is_expanded_as_scontrol_does(slurm_conf: Path, lists: list[str]) -> None:
    assert [expand_nodes(one) for one in lists] == hostnames(lists, slurm_conf)


@pytest.mark.slurm
def test_the_forms_that_are_rare_too(slurm_conf: Path) -> None:
    rare = [
        "[1-3]",
        "n[1,1]",
        "n[5,3,1]",
        "n[9-011]",
        "n[001-3]",
        "r[1-2][3-4]",
        "a[1-2]b[1-2]c[1-2]d[1-2]",
        "a,,b",
        " a, b",
        "b a\tc",
        "login1,gpu[01-02]x[0-1],login1",
    ]
    assert [expand_nodes(one) for one in rare] == hostnames(rare, slurm_conf)


def test_a_name_that_goes_on_behind_the_bracket_is_expanded_as_well() -> None:
    # 22.05 refuses these ("Invalid hostlist"); later ones print them.
    assert expand_nodes("a[08-09]-ib,b[1]x") == ["a08-ib", "a09-ib", "b1x"]


@given(text=st.text(alphabet="ab1[],- ", max_size=30))
def test_whatever_a_list_is_it_is_no_error(text: str) -> None:
    assert all(isinstance(one, str) for one in expand_nodes(text))
