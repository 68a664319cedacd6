"""Ranks find each other without a port, a host name or an environment that was agreed on."""

from __future__ import annotations

import ctypes
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from submitrain.config.sections import DistributedConfig
from submitrain.errors import ConfigError, RunError
from submitrain.run_folder import RunDir
from submitrain.train.context import RankContext
from submitrain.train.distributed import groups as rendezvous
from submitrain.train.distributed.groups import choose_device, replica_count
from tests.forked import run_forked

CLONE_NEWUTS = 0x04000000


def sum_of_ranks(context: RankContext, several_hosts: bool = False, name: str = "") -> Any:
    """Work of a rank: join and sum all ranks, also over the checkpoints' own group."""
    import torch.distributed as dist

    from submitrain.train.distributed.groups import join

    if name:
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS) == 0, "needs root"
        socket.sethostname(name)
    if several_hosts:
        context.local_world_size = 1
    world = join(context, DistributedConfig.model_validate({"timeout_s": 60}))
    values = [torch.tensor([float(context.rank + 1)]) for _ in range(2)]
    dist.all_reduce(values[0], group=world.control)
    dist.all_reduce(values[1], group=world.checkpoints)
    world.barrier()
    return [value.item() for value in values]


@pytest.mark.ranks
def test_ranks_of_one_host_meet(tmp_path: Path) -> None:
    assert run_forked(3, sum_of_ranks, tmp_path) == [[6.0, 6.0]] * 3


@pytest.mark.ranks
def test_ranks_of_several_hosts_meet(tmp_path: Path) -> None:
    assert run_forked(3, sum_of_ranks, tmp_path, True) == [[6.0, 6.0]] * 3
    hosts = json.loads(RunDir(tmp_path).rendezvous(1).read_text())["hosts"]
    assert hosts[0] == socket.gethostname()


def marked_sum(context: RankContext, mark: int) -> int:
    """Work of a rank: a sum that only ranks of the same job can have."""
    import torch.distributed as dist

    from submitrain.train.distributed.groups import join

    context.local_world_size = 1
    join(context, DistributedConfig.model_validate({"timeout_s": 120}))
    value = torch.tensor([mark + context.rank])
    dist.all_reduce(value)
    return int(value.item())


@pytest.mark.ranks
def test_twenty_jobs_at_once_on_one_host_meet_each_their_own_ranks(tmp_path: Path) -> None:
    marks = [1000 * job for job in range(20)]

    def job(mark: int) -> list[int]:
        return run_forked(2, marked_sum, tmp_path / str(mark), mark)

    with ThreadPoolExecutor(len(marks)) as pool:
        sums = list(pool.map(job, marks))
    assert sums == [[2 * mark + 1] * 2 for mark in marks]


@pytest.mark.ranks
@pytest.mark.parametrize("several_hosts", [False, True])
@pytest.mark.filterwarnings("ignore:Unable to resolve hostname")
def test_ranks_meet_where_the_host_name_does_not_resolve(
    tmp_path: Path, several_hosts: bool
) -> None:
    results = run_forked(2, sum_of_ranks, tmp_path, several_hosts, "no-such-name")
    assert results == [[3.0, 3.0]] * 2


@pytest.mark.ranks
def test_every_attempt_meets_at_its_own_address(tmp_path: Path) -> None:
    for attempt in (1, 2):
        assert run_forked(2, sum_of_ranks, tmp_path) == [[3.0, 3.0]] * 2
        assert RunDir(tmp_path).rendezvous(attempt).exists()


def context_of(folder: Path, rank: int) -> RankContext:
    RunDir(folder).events_dir.mkdir(exist_ok=True)
    RunDir(folder).attempt_dir(1).mkdir(parents=True, exist_ok=True)
    return RankContext(RunDir(folder), 1, "test", rank, 2, rank, 2)


def test_missing_rank_0_is_named_after_the_time_limit(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"rank 0 published no address in .*rendezvous\.json"):
        rendezvous.meet(context_of(tmp_path, 1), timeout_s=0.2)


def test_store_of_somebody_else_at_that_address_is_not_joined(tmp_path: Path) -> None:
    store = rendezvous.meet(context_of(tmp_path, 0), timeout_s=5)
    path = RunDir(tmp_path).rendezvous(1)
    address = json.loads(path.read_text())
    path.write_text(json.dumps({**address, "token": "another"}))
    with pytest.raises(RunError, match=r"rank 0 answers at none of \['127\.0\.0\.1'\]"):
        rendezvous.meet(context_of(tmp_path, 1), timeout_s=0.5)
    path.write_text(json.dumps(address))
    assert rendezvous.meet(context_of(tmp_path, 1), timeout_s=5) is not store


def test_unreachable_candidates_are_passed_over(tmp_path: Path) -> None:
    store = rendezvous.meet(context_of(tmp_path, 0), timeout_s=5)
    path = RunDir(tmp_path).rendezvous(1)
    address = json.loads(path.read_text())
    path.write_text(json.dumps({**address, "hosts": ["no-such-name.invalid", "127.0.0.1"]}))
    store.set("hello", "there")
    assert rendezvous.meet(context_of(tmp_path, 1), timeout_s=5).get("hello") == b"there"


@pytest.mark.parametrize(("asked", "world", "copies"), [(None, 4, 1), (2, 4, 2), (2, 3, 1)])
def test_replicas_shrink_with_the_world(asked: int | None, world: int, copies: int) -> None:
    assert replica_count(DistributedConfig(dp_replicate_size=asked), world) == copies


def test_nccl_without_a_gpu_is_refused_with_a_next_step() -> None:
    with pytest.raises(ConfigError, match=r"distributed\.backend: nccl needs a GPU.*use auto"):
        choose_device("nccl", 0)
