"""Tokenized data and tokenizers, made once for all ranks and kept for the next run.

One rank tokenizes, the others wait for the published folder; afterwards all map the same files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from submitrain.config import RunConfig
from submitrain.config.sections import DatasetConfig
from submitrain.imports import gc_paused
from submitrain.train.data.columns import Chat, Pair, Sample, Text
from submitrain.train.data.encode import Document, Encoder, tokenize
from submitrain.train.data.render import Renderer, read_template
from submitrain.train.data.sources import read_samples, source_key
from submitrain.train.data.store import FORMAT, TokenStore, build_once, open_store, write_store
from submitrain.train.data.tokenizer import (
    fingerprint,
    load_tokenizer,
    open_tokenizer,
    train_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = structlog.get_logger()

_POLL_EVERY = 256
"""Documents between two checks whether to go on."""
_PROGRESS_S = 15.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class DataContext:
    """Which rank this is, and where prepared data is kept: a folder that all ranks share.

    ``poll`` is called again and again while this rank tokenizes or waits for the one that does, and
    may raise to give up (a stop was requested); ``barrier`` once, when this rank has its data.
    """

    rank: int
    world_size: int
    cache: Path
    poll: Callable[[], None] = lambda: None
    barrier: Callable[[], None] = lambda: None
    from_rank_0: Callable[[str], str] = str
    """Rank 0's value on every rank: hosts may see another path or time of the same file."""

    @property
    def builds(self) -> bool:
        """Whether this is the rank that does the work."""
        return self.rank == 0


def prepare_tokenizer(config: RunConfig, where: DataContext) -> PreTrainedTokenizerBase:
    """The run's tokenizer; where one is to be trained, rank 0 trains it and the others wait.

    Raises:
        DataError: there is none of that name.
    """
    size = config.model.train_tokenizer_vocab_size
    if size is None:
        return load_tokenizer(config.model)
    key = where.from_rank_0(_digest([FORMAT, "bpe-2", size, _selection(config.dataset)]))
    folder = _root(config.dataset, where) / f"tokenizer-{key}"
    # On all ranks now, and not after waiting for rank 0 to read the data.
    with gc_paused():
        from transformers import AutoTokenizer  # noqa: F401

    def train(scratch: Path) -> None:
        samples = read_samples(config.dataset)
        log.info("data.training_tokenizer", source=samples.where, samples=len(samples))
        train_tokenizer(_texts(samples), size).save_pretrained(scratch)

    saved = build_once(
        folder,
        builder=where.builds,
        find=lambda path: path if (path / "tokenizer.json").exists() else None,
        build=train,
        waiting=where.poll,
    )
    return open_tokenizer(str(saved))


def prepare_store(
    cfg: DatasetConfig, tokenizer: PreTrainedTokenizerBase, where: DataContext
) -> TokenStore:
    """The tokenized data of a section: from the cache, or tokenized by rank 0 now.

    Raises:
        DataError: the data is missing, empty or malformed.
    """
    template = read_template(cfg.chat_template)
    key = _digest([FORMAT, *_selection(cfg), cfg.max_length, cfg.answer_only_loss_mask, template])
    key = where.from_rank_0(_digest([key, fingerprint(tokenizer)]))
    encoder = Encoder(
        tokenizer, Renderer(tokenizer, template), cfg.max_length, cfg.answer_only_loss_mask
    )
    return build_once(
        _root(cfg, where) / f"tokens-{key}",
        builder=where.builds,
        find=open_store,
        build=lambda scratch: _tokenize(cfg, encoder, scratch, where.poll),
        waiting=where.poll,
    )


def _tokenize(cfg: DatasetConfig, encoder: Encoder, folder: Path, poll: Callable[[], None]) -> None:
    began = time.monotonic()
    samples = read_samples(cfg, encoder.tokenizer)
    log.info("data.tokenizing", source=samples.where, split=cfg.split, samples=len(samples))

    def with_progress() -> Iterator[Document]:
        logged_at = time.monotonic()
        for done, document in enumerate(tokenize(encoder, samples, cfg.num_workers)):
            if done % _POLL_EVERY == 0:
                poll()
                if time.monotonic() - logged_at > _PROGRESS_S:
                    logged_at = time.monotonic()
                    log.info("data.progress", done=done, samples=len(samples))
            yield document

    meta = write_store(folder, with_progress(), where=samples.where).meta
    tokenize_s = round(time.monotonic() - began, 3)
    log.info("data.tokenized", **counts(meta), tokenize_s=tokenize_s)


def counts(meta: Any) -> dict[str, int]:
    """The numbers of a store that a user wants to see: nothing is dropped silently."""
    names = ("samples", "documents", "tokens", "label_tokens", "truncated", "dropped", "longest")
    return {name: getattr(meta, name) for name in names}


def _texts(samples: Iterable[Sample]) -> Iterator[str]:
    """One text for every sample."""
    for sample in samples:
        if isinstance(sample, Pair):
            parts = (sample.prompt, sample.context, sample.response)
            yield "\n".join(part for part in parts if part)
        elif isinstance(sample, Chat):
            yield "\n".join(message.content for message in sample.messages)
        elif isinstance(sample, Text):
            yield sample.text


def _selection(cfg: DatasetConfig) -> list[Any]:
    """What decides which samples are read, and how."""
    return [source_key(cfg), cfg.split, cfg.num_samples_limit, cfg.column_mapping]


def _root(cfg: DatasetConfig, where: DataContext) -> Path:
    return where.cache if cfg.cache_dir is None else Path(cfg.cache_dir).expanduser()


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]
