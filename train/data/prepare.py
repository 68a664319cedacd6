"""Tokenizers and tokenized data, made once for all ranks and kept for the next run.

The tokenizer is the model's own, another one, or one trained here on the training data.

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
from submitrain.config.sections import DatasetConfig, ModelConfig
from submitrain.errors import DataError
from submitrain.imports import gc_paused
from submitrain.train.data.columns import Chat, Pair, Sample, Text
from submitrain.train.data.encode import Document, Encoder, tokenize
from submitrain.train.data.render import Renderer, read_template
from submitrain.train.data.sources import read_samples, source_key
from submitrain.train.data.store import FORMAT, TokenStore, build_once, open_store, write_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = structlog.get_logger()

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
_READ_CHARS = 8_000_000
"""Text, from the data's beginning, that a new vocabulary is learned from a part of."""
_CHARS_PER_TOKEN = 500
"""That part's size: four times as much made texts 0.5 % shorter in tokens, in four times the time.
"""

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


def load_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that the model section names.

    Raises:
        DataError: none is named, it does not exist, or it has no end-of-sequence token.
    """
    name = cfg.tokenizer or cfg.pretrained_model_name_or_path
    if name is None:
        raise DataError(
            "model.tokenizer: missing; a model built from model.config needs one; next: give a hub "
            "name or folder as model.tokenizer, or model.train_tokenizer_vocab_size to train one"
        )
    options = {"trust_remote_code": cfg.trust_remote_code, "revision": cfg.revision}
    return open_tokenizer(name, **{key: value for key, value in options.items() if value})


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with an end-of-text token, learned from some of ``texts``.

    It can express any text: its alphabet are the 256 bytes. Every n-th text is learned from, as
    many as a vocabulary of that size needs, so that all kinds of text have their share.

    Raises:
        DataError: the texts are too few for a vocabulary of that size.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_spread(texts, _CHARS_PER_TOKEN * vocab_size), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END_OF_TEXT, pad_token=PADDING, padding_side="right"
    )


def fingerprint(tokenizer: Any) -> str:
    """Hash of all that decides how this tokenizer turns text into ids."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = core.to_str() if core is not None else sorted(tokenizer.get_vocab().items())
    parts = [
        type(tokenizer).__name__,
        vocabulary,
        tokenizer.chat_template,
        {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or a folder.

    Raises:
        DataError: it cannot be loaded, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"model.tokenizer: cannot load a tokenizer from {name!r}: {reason[:300]}; next: check "
            "the name, give the path of a local folder, or, where nodes have no network, download "
            "once where there is one and set HF_HOME to that cache together with HF_HUB_OFFLINE=1"
        ) from error
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"model.tokenizer: {name!r} has no end-of-sequence token, so a model could not learn "
            "to stop; next: add eos_token to its tokenizer_config.json or choose another tokenizer"
        )
    return tokenizer


def _spread(texts: Iterable[str], chars: int) -> list[str]:
    """Every n-th of the first texts: about ``chars`` characters, or all there are if fewer."""
    read, total = [], 0
    for text in texts:
        read.append(text)
        total += len(text)
        if total >= _READ_CHARS:
            break
    return read[:: max(1, round(total / chars))]
