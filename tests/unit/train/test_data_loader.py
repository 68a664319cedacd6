"""Loading: every document exactly once, from any position, whatever the processes do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from submitrain.config.sections import DataLoaderConfig
from submitrain.train.data.batch import MicroBatch, one_per_unit, pack
from submitrain.train.data.loader import (
    OnePass,
    RankBatches,
    StepParts,
    open_loader,
    start,
    step_batches,
)
from submitrain.train.data.order import UnitOrder
from submitrain.train.data.store import TokenStore
from tests.data_parts import make_store

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
"""Small machines have fewer cores than some of these tests have loader processes."""

DOCUMENTS = 53
LENGTHS = [2 + (7 * i) % 23 for i in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("store"), LENGTHS)


def rank_batches(
    store: TokenStore, *, rank: int = 0, world: int = 1, local: int = 2, packed: bool = False
) -> RankBatches:
    units = pack(store.lengths, 32) if packed else one_per_unit(len(store))
    order = UnitOrder(len(units), seed=3, shuffle=True)
    return RankBatches(store, units, order, rank=rank, world_size=world, local_size=local)


def loader_config(num_workers: int = 0, **keys: Any) -> DataLoaderConfig:
    return DataLoaderConfig.model_validate({"num_workers": num_workers, **keys})


def contents(steps: Iterator[list[MicroBatch]]) -> list[list[tuple[tuple[int, ...], list[int]]]]:
    return [[(batch.doc_ids, batch.labels[0].tolist()) for batch in step] for step in steps]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("packed", [False, True])
def test_epochs_over_all_ranks_are_exact(store: TokenStore, world: int, packed: bool) -> None:
    seen: Counter[int] = Counter()
    for rank in range(world):
        batches = rank_batches(store, rank=rank, world=world, packed=packed)
        parts = StepParts(
            0, 2 * len(batches.units), global_size=12, accumulation=-(-12 // (2 * world))
        )
        for step in step_batches(batches, parts, loader_config()):
            seen.update(doc for batch in step for doc in batch.doc_ids)
    assert seen == Counter(dict.fromkeys(range(DOCUMENTS), 2))


def test_every_rank_gets_the_same_number_of_micro_batches(store: TokenStore) -> None:
    parts = StepParts(0, 53, global_size=12, accumulation=2)
    counts = {
        tuple(
            len(step)
            for step in step_batches(rank_batches(store, rank=r, world=3), parts, loader_config())
        )
        for r in range(3)
    }
    assert counts == {(2,) * 5}


@pytest.mark.parametrize("keys", [{}, {"persistent_workers": True, "prefetch_factor": 4}])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_loader_processes_change_nothing(
    store: TokenStore, num_workers: int, keys: dict[str, Any]
) -> None:
    parts = StepParts(7, 130, global_size=9, accumulation=5)
    expected = contents(step_batches(rank_batches(store), parts, loader_config()))
    config = loader_config(num_workers, **keys)
    assert contents(step_batches(rank_batches(store), parts, config)) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_start_at_any_position_continues_the_stream(store: TokenStore, num_workers: int) -> None:
    config = loader_config(num_workers)
    whole = contents(step_batches(rank_batches(store), StepParts(0, 160, 8, 4), config))
    for done in (1, 6, 7, 19):
        rest = step_batches(rank_batches(store), StepParts(8 * done, 160, 8, 4), config)
        assert contents(rest) == whole[done:]


def test_endless_stream_goes_on_after_the_epoch(store: TokenStore) -> None:
    stream = step_batches(rank_batches(store), StepParts(0, None, 10, 5), loader_config())
    docs = [doc for _ in range(106 // 2) for batch in next(stream) for doc in batch.doc_ids]
    assert Counter(docs) == Counter(dict.fromkeys(range(DOCUMENTS), 10))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_global_random_state_alone(store: TokenStore, num_workers: int) -> None:
    before = torch.get_rng_state()
    stream = step_batches(rank_batches(store), StepParts(0, 40, 4, 2), loader_config(num_workers))
    next(stream)
    assert torch.equal(torch.get_rng_state(), before)


def passes(store: TokenStore, world: int, num_workers: int = 0) -> list[list[MicroBatch]]:
    found = []
    for rank in range(world):
        batches = rank_batches(store, rank=rank, world=world, local=4)
        loader = open_loader(batches, OnePass(DOCUMENTS, 4 * world), loader_config(num_workers))
        found.append(list(start(loader)))
    return found


@pytest.mark.parametrize("world", [1, 2, 5, 16])
def test_validation_visits_every_document_once_on_equally_many_batches(
    store: TokenStore, world: int
) -> None:
    ranks = passes(store, world)
    docs = [doc for rank in ranks for batch in rank for doc in batch.doc_ids]
    assert sorted(docs) == list(range(DOCUMENTS))
    assert {len(rank) for rank in ranks} == {-(-DOCUMENTS // (4 * world))}


@pytest.mark.parametrize("world", [1, 2, 5, 16])
def test_validation_sums_are_exact_at_any_world_size(store: TokenStore, world: int) -> None:
    """The uneven last batch weighs what it holds: sums over ranks are those of the data."""
    batches = [batch for rank in passes(store, world) for batch in rank]
    label_sum = sum(int(batch.labels[batch.labels != -100].sum()) for batch in batches)
    marked = [store.document(doc) for doc in range(DOCUMENTS)]
    assert label_sum == sum(int(ids[marks].sum()) for ids, marks in marked)
    assert sum(batch.label_tokens for batch in batches) == store.meta.label_tokens


def test_validation_passes_repeat_with_living_processes(store: TokenStore) -> None:
    loader = open_loader(
        rank_batches(store), OnePass(DOCUMENTS, 2), loader_config(1, persistent_workers=True)
    )
    first, second = ([batch.doc_ids for batch in start(loader)] for _ in range(2))
    assert first == second


def test_stop_signals_do_not_end_loader_processes(store: TokenStore) -> None:
    """Slurm warns every process of a step; the rank wants to save then, with its loader alive."""
    before = multiprocessing.active_children()
    stream = step_batches(rank_batches(store), StepParts(0, None, 4, 2), loader_config(2))
    next(stream)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, number)
    for _ in range(50):
        next(stream)
    assert all(worker.is_alive() for worker in workers)


def test_handlers_of_the_rank_are_as_before(store: TokenStore) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    next(step_batches(rank_batches(store), StepParts(0, None, 4, 2), loader_config(1)))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


PROGRAM = """
import multiprocessing, sys, time
from pathlib import Path
from tests.unit.train.test_data_loader import loader_config, rank_batches
from submitrain.train.data.loader import StepParts, step_batches
from submitrain.train.data.store import TokenStore
store = TokenStore(Path(sys.argv[1]))
stream = step_batches(rank_batches(store), StepParts(0, None, 4, 2), loader_config(2))
next(stream)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    """Whether a process is there and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_loader_processes_end_when_their_rank_is_killed(store: TokenStore) -> None:
    rank = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(store.folder)], stdout=subprocess.PIPE, text=True
    )
    with rank:
        assert rank.stdout is not None
        workers = [int(pid) for pid in rank.stdout.readline().split()]
        os.kill(rank.pid, signal.SIGKILL)
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, workers))


FORKSERVER_PROGRAM = """
import multiprocessing, os, sys
from pathlib import Path
from tests.unit.train.test_data_loader import loader_config, rank_batches
from submitrain.train.data.loader import StepParts, step_batches
from submitrain.train.data.store import TokenStore
multiprocessing.set_start_method("forkserver")
store = TokenStore(Path(sys.argv[1]))
stream = step_batches(rank_batches(store), StepParts(0, None, 4, 2), loader_config(2))
print([batch.doc_ids for batch in next(stream)], flush=True)
os._exit(0)  # as ranks leave: the loader's processes end with their parent
"""


def test_loader_processes_are_the_ranks_own_children_whatever_pythons_default(
    store: TokenStore,
) -> None:
    """Python 3.14's default is a forkserver: its children would take their rank for dead."""
    done = subprocess.run(
        [sys.executable, "-c", FORKSERVER_PROGRAM, str(store.folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    expected = step_batches(rank_batches(store), StepParts(0, None, 4, 2), loader_config())
    assert done.stdout.strip() == str([batch.doc_ids for batch in next(expected)]), done.stderr


def test_starting_far_into_the_data_reads_no_other_document(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = TokenStore.document
    monkeypatch.setattr(
        TokenStore, "document", lambda self, i: (read.append(i), original(self, i))[1]
    )
    stream = step_batches(rank_batches(store), StepParts(10**9, None, 4, 2), loader_config())
    next(stream)
    assert len(read) == 4


def test_own_folder_is_all_a_loader_process_needs(tmp_path: Path) -> None:
    batches = rank_batches(make_store(tmp_path, LENGTHS), packed=True)
    parts = StepParts(0, 10, 4, 2)
    loader = open_loader(batches, parts, loader_config(1))
    loader.multiprocessing_context = "spawn"
    spawned = [batch.doc_ids for batch in start(loader)]
    assert spawned == [
        batch.doc_ids for step in step_batches(batches, parts, loader_config()) for batch in step
    ]
