"""Tokenized data on disk: written once, memory-mapped by every rank and loader process.

<cache>/tokens-<key>/
  tokens.bin    int32, all documents one after the other
  marks.bin     one bit for every token (little-endian bit order): whether it is learned
  offsets.npy   int64 [documents + 1], first token of every document
  samples.npy   int64 [documents], the sample's number in the data
  meta.json     counts and the digest of the content; written last

``build_once`` publishes a folder whole by an atomic rename, or not at all. Waiting for it is
polling the file system, so it may take longer than any collective's time limit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from submitrain.errors import DataError
from submitrain.run_folder import fsync_dir, write_json_atomically
from submitrain.train.checkpoint.folders import fsync_file
from submitrain.train.data.encode import Document

POLL_S = 0.2
T = TypeVar("T")


def build_once(
    folder: Path,
    *,
    builder: bool,
    find: Callable[[Path], T | None],
    build: Callable[[Path], None],
    waiting: Callable[[], None],
) -> T:
    """What ``find`` sees in ``folder``; the builder makes it first where it sees nothing.

    The others call ``waiting`` at every poll, which may raise to give up. Two builders (two runs
    with one cache) do no harm: the first one to finish wins.
    """
    found = find(folder)
    while found is None and not builder:
        waiting()
        time.sleep(POLL_S)
        if folder.parent.is_dir():  # listing makes NFS ask the server: a stat may be an old answer
            next(folder.parent.iterdir(), None)
        found = find(folder)
    if found is None:
        _publish(folder, find, build)
        found = find(folder)
        if found is None:
            raise OSError(f"{folder} was written but cannot be read back")
    return found


def _publish(folder: Path, find: Callable[[Path], T | None], build: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        build(scratch)
        for file in scratch.rglob("*"):
            if file.is_file():
                fsync_file(file)
        fsync_dir(scratch)
        scratch.chmod(0o755)
        _put(scratch, folder, find)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    fsync_dir(folder.parent)


def _put(scratch: Path, folder: Path, find: Callable[[Path], T | None]) -> None:
    """Rename into place; a folder that is there but not whole makes way."""
    try:
        scratch.rename(folder)
    except OSError:
        if find(folder) is not None:
            return
        broken = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".broken-{folder.name}."))
        folder.rename(broken / folder.name)
        shutil.rmtree(broken, ignore_errors=True)
        scratch.rename(folder)


FORMAT = 1
META = "meta.json"
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoreMeta:
    """What is in a store; ``digest`` identifies the tokenized content, wherever it lies."""

    where: str
    samples: int
    documents: int
    tokens: int
    label_tokens: int
    truncated: int
    dropped: int
    longest: int
    digest: str
    format: int = FORMAT


@dataclass(frozen=True)
class TokenStore:
    """Read-only documents of a folder. Cheap to pickle and safe to fork: it holds a path."""

    folder: Path

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def meta(self) -> StoreMeta:
        """Counts and digest."""
        return StoreMeta(**json.loads((self.folder / META).read_text()))

    @cached_property
    def offsets(self) -> Indices:
        """First token of every document, and the end: int64 [documents + 1]."""
        return np.load(self.folder / "offsets.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def sample_ids(self) -> Indices:
        """Every document's sample number in its data set: int64 [documents]."""
        return np.load(self.folder / "samples.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @property
    def lengths(self) -> Indices:
        """Tokens of every document: int64 [documents]."""
        return np.diff(self.offsets)

    def document(self, number: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Token ids (int32 [n]) and which of them are learned (bool [n])."""
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        bits = np.unpackbits(self._marks[start // 8 : (stop + 7) // 8], bitorder="little")
        first = start % 8
        return self._tokens[start:stop], bits[first : first + stop - start].view(np.bool_)

    @cached_property
    def _tokens(self) -> npt.NDArray[np.int32]:
        return np.memmap(self.folder / "tokens.bin", dtype=np.int32, mode="r")

    @cached_property
    def _marks(self) -> npt.NDArray[np.uint8]:
        return np.memmap(self.folder / "marks.bin", dtype=np.uint8, mode="r")


def open_store(folder: Path) -> TokenStore | None:
    """The store in ``folder``, or None where there is none or where it is not whole."""
    store = TokenStore(folder)
    try:
        meta = store.meta
        sizes = {"tokens.bin": 4 * meta.tokens, "marks.bin": (meta.tokens + 7) // 8}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        counts = (len(store), len(store.sample_ids), int(store.offsets[-1]))
    except (OSError, ValueError, TypeError):
        return None
    expected = (meta.documents, meta.documents, meta.tokens)
    return store if whole and meta.format == FORMAT and counts == expected else None


def write_store(folder: Path, documents: Iterable[Document], *, where: str) -> TokenStore:
    """Write documents to a folder; samples without anything to learn are dropped and counted.

    Raises:
        DataError: nothing to learn is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "marks.bin").open("wb") as marks:
        writer = _Writer(tokens, marks)
        for document in documents:
            writer.add(document)
        writer.finish()
    if not writer.samples:
        raise DataError(
            f"dataset: {where}: none of {writer.read} samples has anything to learn "
            f"({writer.truncated} were cut at max_length); next: raise dataset.max_length, check "
            "that answers are not empty, or set answer_only_loss_mask: false"
        )
    offsets = np.array(writer.offsets, dtype=np.int64)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "samples.npy", np.array(writer.samples, dtype=np.int64))
    writer.hash.update(offsets.tobytes())
    meta = StoreMeta(
        where=where,
        samples=writer.read,
        documents=len(writer.samples),
        tokens=int(offsets[-1]),
        label_tokens=writer.label_tokens,
        truncated=writer.truncated,
        dropped=writer.read - len(writer.samples),
        longest=int(np.diff(offsets).max()),
        digest=writer.hash.hexdigest(),
    )
    write_json_atomically(folder / META, asdict(meta))
    return TokenStore(folder)


@dataclass
class _Writer:
    """Appends documents to the two token files."""

    tokens: BinaryIO
    marks: BinaryIO
    read: int = 0
    truncated: int = 0
    label_tokens: int = 0
    offsets: list[int] = field(default_factory=lambda: [0])
    samples: list[int] = field(default_factory=list)
    hash: Any = field(default_factory=hashlib.sha256)
    _rest: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def finish(self) -> None:
        """Write the marks that do not fill a byte yet."""
        self._write(self.marks, np.packbits(self._rest, bitorder="little").tobytes())

    def add(self, document: Document) -> None:
        """Append one document, unless there is nothing to learn in it."""
        self.read += 1
        self.truncated += document.truncated
        if not document.learns:
            return
        self.samples.append(self.read - 1)
        self.offsets.append(self.offsets[-1] + len(document.ids))
        self.label_tokens += int(document.is_label.sum())
        self._write(self.tokens, document.ids.tobytes())
        marks = np.concatenate([self._rest, document.is_label])
        whole = len(marks) // 8 * 8
        self._write(self.marks, np.packbits(marks[:whole], bitorder="little").tobytes())
        self._rest = marks[whole:]

    def _write(self, file: BinaryIO, data: bytes) -> None:
        file.write(data)
        self.hash.update(data)
