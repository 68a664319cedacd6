"""From samples to token ids and the marks of the tokens to learn, in one process or in several.

A sample is rendered as text in which the spans to learn are known by character; a token is learned
when it starts inside such a span. Text around a border is tokenized in one piece where a token
border falls there, else in two, so an answer never shares a token with its prompt.
"""

from __future__ import annotations

import multiprocessing
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from submitrain.signals import die_with_parent, ignore_stop_signals, stop_signals_blocked
from submitrain.train.data.columns import Sample, Tokens
from submitrain.train.data.render import Rendered, Renderer

Ids = npt.NDArray[np.int32]
Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Document:
    """One tokenized sample: ``ids`` int32 [n], ``is_label`` bool [n] (never true at 0)."""

    ids: Ids
    is_label: Marks
    truncated: bool = False

    @property
    def learns(self) -> bool:
        """Whether any token is left to learn; cutting may have taken the whole answer."""
        return bool(self.is_label.any())


@dataclass(frozen=True)
class Encoder:
    """Turns samples into documents of at most ``max_length`` tokens. Can be pickled."""

    tokenizer: Any
    renderer: Renderer
    max_length: int
    answer_only: bool = True

    def encode(self, samples: Sequence[Sample]) -> list[Document]:
        """One document for every sample, in order."""
        rendered = [
            [] if isinstance(sample, Tokens) else self.renderer.render(sample) for sample in samples
        ]
        pieces = iter(self._tokenize([piece for pieces in rendered for piece in pieces]))
        documents = []
        for sample, own in zip(samples, rendered, strict=True):
            if isinstance(sample, Tokens):
                ids = np.array(sample.ids, dtype=np.int32)
                marks = np.array(sample.is_label, dtype=np.bool_)
            else:
                ids, marks = self._join(own, [next(pieces) for _ in own])
            documents.append(self._cut(ids, marks))
        return documents

    def _join(self, pieces: list[Rendered], encoded: list[tuple[Ids, Marks]]) -> tuple[Ids, Marks]:
        """Pieces of a sample one after the other, with the tokenizer's own BOS and EOS."""
        eos = np.array([self.tokenizer.eos_token_id], dtype=np.int32)
        ids = [np.array(self._bos if pieces[0].add_bos else [], dtype=np.int32)]
        marks = [np.zeros(len(ids[0]), dtype=np.bool_)]
        for piece, (piece_ids, piece_marks) in zip(pieces, encoded, strict=True):
            ids.append(piece_ids)
            marks.append(piece_marks)
            if piece.close:
                ids.append(eos)
                marks.append(np.ones(1, dtype=np.bool_))
        return np.concatenate(ids), np.concatenate(marks)

    def _cut(self, ids: Ids, marks: Marks) -> Document:
        if not self.answer_only:
            marks = np.ones(len(ids), dtype=np.bool_)
        marks = marks[: self.max_length].copy()
        marks[:1] = False
        return Document(ids[: self.max_length], marks, truncated=len(ids) > self.max_length)

    @cached_property
    def _bos(self) -> list[int]:
        """BOS where this tokenizer puts one before plain text."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("")["input_ids"][:1] == [bos] else []

    def _tokenize(self, pieces: list[Rendered]) -> list[tuple[Ids, Marks]]:
        if not pieces:
            return []
        if not self.tokenizer.is_fast:
            return [self._in_parts(piece) for piece in pieces]
        encoded = self.tokenizer(
            [piece.text for piece in pieces],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        rows = zip(pieces, encoded["input_ids"], encoded.encodings, strict=True)
        return [self._mark(piece, ids, encoding) for piece, ids, encoding in rows]

    def _mark(self, piece: Rendered, ids: list[int], encoding: Any) -> tuple[Ids, Marks]:
        """Marks by character offsets; falls back to parts where a token crosses a border."""
        marks = np.zeros(len(ids), dtype=np.bool_)
        for span in piece.spans:
            first, last = (_token_at(encoding, border) for border in span)
            if first is None or last is None:
                return self._in_parts(piece)
            marks[first:last] = True
        return np.array(ids, dtype=np.int32), marks

    def _in_parts(self, piece: Rendered) -> tuple[Ids, Marks]:
        """Tokenize every part between two borders alone."""
        ids: list[int] = []
        marks: list[bool] = []
        for text, learned in piece.parts():
            part = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            ids += part
            marks += [learned] * len(part)
        return np.array(ids, dtype=np.int32), np.array(marks, dtype=np.bool_)


def _token_at(encoding: Any, border: int) -> int | None:
    """Number of the first token that starts at or after a character; None if one lies across it.

    Asks for the places of a few tokens: a list of all takes a third as long as tokenizing.
    """
    at = bisect_left(range(len(encoding)), border, key=lambda i: encoding.token_to_chars(i)[0])
    crossed = at > 0 and encoding.token_to_chars(at - 1)[1] > border
    return None if crossed else at


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
