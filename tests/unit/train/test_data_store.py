"""Tokenized data on disk: what is written is what is read, published whole or not at all."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.errors import DataError
from submitrain.train.data.encode import Document
from submitrain.train.data.store import META, TokenStore, build_once, open_store, write_store
from tests.data_parts import make_store

documents = st.lists(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=40),
    min_size=1,
    max_size=12,
)


def as_documents(rows: list[list[tuple[int, bool]]]) -> list[Document]:
    return [
        Document(
            np.array([token for token, _ in row], dtype=np.int32),
            np.array([mark for _, mark in row], dtype=np.bool_),
        )
        for row in rows
    ]


@settings(max_examples=60, deadline=None)
@given(documents)
def test_documents_come_back_as_written(rows: list[list[tuple[int, bool]]]) -> None:
    rows.append([(1, False), (2, True)])
    kept = [number for number, row in enumerate(rows) if any(mark for _, mark in row)]
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), as_documents(rows), where="here")
        store = open_store(Path(folder))
        assert store is not None
        read = [
            list(zip(*(part.tolist() for part in store.document(i)), strict=True))
            for i in range(len(store))
        ]
        assert read == [rows[number] for number in kept]
        assert store.sample_ids.tolist() == kept


def test_meta_counts_what_was_cut_and_dropped(tmp_path: Path) -> None:
    ids = np.arange(4, dtype=np.int32)
    rows = [
        Document(ids, np.array([False, False, True, True])),
        Document(ids, np.array([False, True, True, True]), truncated=True),
        Document(ids, np.zeros(4, dtype=np.bool_), truncated=True),
    ]
    meta = write_store(tmp_path, rows, where="here").meta
    counts = (meta.samples, meta.documents, meta.dropped, meta.truncated, meta.label_tokens)
    assert counts == (3, 2, 1, 2, 5)


def test_nothing_to_learn_is_an_error(tmp_path: Path) -> None:
    row = Document(np.arange(3, dtype=np.int32), np.zeros(3, dtype=np.bool_))
    with pytest.raises(DataError, match="none of 1 samples has anything to learn"):
        write_store(tmp_path, [row], where="here")


def test_digest_depends_on_the_content_only(tmp_path: Path) -> None:
    stores = {
        name: make_store(tmp_path / name, lengths)
        for name, lengths in {"a": [3, 5], "b": [3, 5], "c": [5, 3]}.items()
    }
    digests = {name: store.meta.digest for name, store in stores.items()}
    assert digests["a"] == digests["b"] != digests["c"]


@pytest.mark.parametrize("file", ["tokens.bin", "marks.bin", "offsets.npy", "samples.npy", META])
def test_store_that_is_not_whole_is_no_store(tmp_path: Path, file: str) -> None:
    make_store(tmp_path, [30, 50])
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-3])
    assert open_store(tmp_path) is None


def _document_sum(store: TokenStore) -> int:
    return int(store.document(1)[0].sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_store_works_in_other_processes(tmp_path: Path, method: str) -> None:
    store = make_store(tmp_path, [3, 50])
    expected = _document_sum(store)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_document_sum, (store,)) == expected


def test_pickled_store_holds_a_path_only(tmp_path: Path) -> None:
    store = make_store(tmp_path, [100] * 500)
    store.document(3)
    assert len(pickle.dumps(store)) < 500


def _find(folder: Path) -> str | None:
    return (folder / "done").read_text() if (folder / "done").exists() else None


def test_others_wait_until_the_builder_published(tmp_path: Path) -> None:
    waited, release = threading.Event(), threading.Event()

    def build(folder: Path) -> None:
        assert waited.wait(30)
        release.set()
        (folder / "done").write_text("yes")

    target = tmp_path / "cache" / "it"
    builder = threading.Thread(
        target=build_once,
        args=(target,),
        kwargs={"builder": True, "find": _find, "build": build, "waiting": lambda: None},
    )
    builder.start()
    found = build_once(target, builder=False, find=_find, build=build, waiting=waited.set)
    builder.join()
    assert (found, release.is_set()) == ("yes", True)


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    class StopAskedError(Exception):
        pass

    def give_up() -> None:
        raise StopAskedError

    with pytest.raises(StopAskedError):
        build_once(
            tmp_path / "it", builder=False, find=_find, build=lambda _: None, waiting=give_up
        )


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        build_once(tmp_path / "it", builder=True, find=_find, build=build, waiting=lambda: None)
    assert list(tmp_path.iterdir()) == []


def _write(folder: Path) -> None:
    (folder / "done").write_text("new")


def test_broken_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "half").write_text("x")
    found = build_once(
        tmp_path / "it", builder=True, find=_find, build=_write, waiting=lambda: None
    )
    assert found == "new"
    assert [path.name for path in tmp_path.rglob("*")] == ["it", "done"]


def test_second_builder_keeps_what_the_first_published(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        _write(folder)
        (tmp_path / "it").mkdir()
        (tmp_path / "it" / "done").write_text("first")

    found = build_once(tmp_path / "it", builder=True, find=_find, build=build, waiting=lambda: None)
    assert found == "first"
