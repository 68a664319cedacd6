"""Tokenize all samples, in this process or in several; the result is the same."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice

from train.data.encode import Document, Encoder
from train.data.samples import Sample
from train.data.signals import die_with_parent, ignore_stop_signals, stop_signals_blocked

_CHUNK = 512
"""Samples tokenized together."""

_encoder: Encoder | None = None
"""The worker process's own copy, sent once instead of with every chunk."""


def tokenize(encoder: Encoder, samples: Iterable[Sample], num_workers: int) -> Iterator[Document]:
    """Documents in the order of the samples; ``num_workers`` processes, 0 for this one."""
    if num_workers == 0:
        # Set before the tokenizer has threads: every process forked later would warn otherwise.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        for chunk in _chunks(samples):
            yield from encoder.encode(chunk)
        return
    with ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(encoder,),
    ) as pool:
        waiting: deque[Future[list[Document]]] = deque()
        for chunk in _chunks(samples):
            with stop_signals_blocked():
                waiting.append(pool.submit(_encode, chunk))
            if len(waiting) > 2 * num_workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    ignore_stop_signals()
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = encoder


def _encode(chunk: list[Sample]) -> list[Document]:
    assert _encoder is not None
    return _encoder.encode(chunk)
