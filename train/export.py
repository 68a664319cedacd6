"""Export: the trained model as a folder that ``from_pretrained`` reads, and a text it generates.

Whole tensors are gathered one after another; at no time does a rank hold more than one of them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from submitrain.errors import CheckpointError, RunError
from submitrain.events import Fence
from submitrain.run_folder import fsync_dir
from submitrain.train.checkpoint.folders import fsync_file
from submitrain.train.checkpoint.hf_weights import (
    Layout,
    Pretrained,
    WeightFile,
    write_index,
    write_tensor,
)
from submitrain.train.checkpoint.storage import AgreedError, Agreement
from submitrain.train.checkpoint.tensors import model_tensors


def export_pretrained(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    *,
    consolidated: bool,
    dtype: torch.dtype | None = None,
    fence: Fence | None = None,
) -> int:
    """Write ``model`` to ``folder`` for ``from_pretrained``; all ranks call it; returns the bytes.

    ``consolidated`` writes one file (or several of 5 GB) from rank 0; otherwise every rank writes
    one file, all at once, and an index joins them. With PEFT only the adapter is written, in peft's
    form. ``dtype`` is the type of the weights; None keeps the master weights' own. The folder
    appears by a rename, whole or not at all; an older export there is replaced. ``fence`` keeps an
    attempt that has a successor from that.

    Raises:
        FencedError: a newer attempt owns the run folder.
        CheckpointError: some rank could not write; ``folder`` is as it was.
    """
    agreement = Agreement(dist.group.WORLD if dist.is_initialized() else None)
    layout = Pretrained(tokenizer, dtype).layout(model)
    files = layout.files(parts=1 if consolidated else agreement.world_size)
    owners = 1 if consolidated else agreement.world_size
    mine = files[agreement.rank :: owners] if agreement.rank < owners else []
    place = _Place(folder, fence or Fence())
    temporary = place.temporary
    try:
        agreement.on_rank0(place.begin)
        writer = _ShareWriter(temporary, mine)
        _gather_all(model, files, writer)
        agreement.together(writer.finish)
        return agreement.on_rank0(lambda: _publish(layout, files, place))
    except AgreedError as error:
        if agreement.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        place.fence.check(f"export to {folder}")
        raise CheckpointError(f"{folder}: the model was not exported: {error}") from error


class _ShareWriter:
    """Writes this rank's files while whole tensors pass by; remembers the first error.

    The passing is collective: a rank with a full disk must go on taking part in it.
    """

    def __init__(self, folder: Path, files: Sequence[WeightFile]) -> None:
        self._folder = folder
        self._place = {weight.source: (file, weight) for file in files for weight in file.weights}
        self._files = files
        self._stack = ExitStack()
        self._streams: dict[str, BinaryIO] = {}
        self._error: OSError | None = None

    def add(self, source: str, tensor: torch.Tensor) -> None:
        """Write the tensor if one of this rank's files is its place."""
        if source not in self._place or self._error is not None:
            return
        file, weight = self._place[source]
        try:
            if file.name not in self._streams:
                stream = self._stack.enter_context((self._folder / file.name).open("wb"))
                stream.write(file.header())
                self._streams[file.name] = stream
            write_tensor(self._streams[file.name], weight, tensor)
        except OSError as error:
            self._error = error

    def finish(self) -> None:
        """Close and flush the files.

        Raises:
            OSError: something could not be written.
        """
        self._stack.close()
        if self._error is not None:
            raise self._error
        for file in self._files:
            fsync_file(self._folder / file.name)


def _gather_all(model: nn.Module, files: Sequence[WeightFile], writer: _ShareWriter) -> None:
    """Let every whole tensor pass by, from each file in turn, so that ranks write side by side."""
    tensors = model_tensors(model)
    for row in zip_longest(*(file.weights for file in files)):
        for weight in filter(None, row):
            tensor = tensors[weight.source]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            writer.add(weight.source, whole)


@dataclass(frozen=True)
class _Place:
    """Where an export goes: ``.export.tmp-3`` while attempt 3 writes it, then ``export``."""

    folder: Path
    fence: Fence

    @property
    def temporary(self) -> Path:
        return self._named("tmp", self.fence.attempt)

    def begin(self) -> None:
        """Make the empty temporary folder; older attempts' ones go, so none is published late."""
        self.fence.check(f"export to {self.folder}")
        pattern = re.compile(rf"\.{re.escape(self.folder.name)}\.(tmp|old)-(\d+)")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for path in list(self.folder.parent.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and int(match.group(2)) <= self.fence.attempt:
                gone = self._free_name()
                with suppress(FileNotFoundError):
                    path.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
        self.temporary.mkdir()

    def publish(self) -> None:
        """Rename the complete folder into place; a fenced attempt changes nothing."""
        replaced = self._free_name()
        with self.fence.moved_aside(self.folder, replaced):
            self.temporary.rename(self.folder)
        fsync_dir(self.folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def _free_name(self) -> Path:
        path = self._named("old", self.fence.attempt)
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _named(self, kind: str, attempt: int) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{kind}-{attempt}")


def _publish(layout: Layout, files: Sequence[WeightFile], place: _Place) -> int:
    """Complete the temporary folder and put it in place; returns its size in bytes."""
    temporary = place.temporary
    write_index(temporary, files, layout.stem)
    layout.describe(temporary)
    paths = [path for path in temporary.rglob("*") if path.is_file()]
    for path in paths:
        fsync_file(path)
    fsync_dir(temporary)
    total = sum(path.stat().st_size for path in paths)
    place.publish()
    return total


def generate_sample(
    folder: Path, prompt: str, max_new_tokens: int, *, trust_remote_code: bool = False
) -> str:
    """What the exported model in ``folder`` writes after ``prompt``; greedy, so always the same.

    ``trust_remote_code``: run code that comes with the model or the tokenizer.

    Raises:
        RunError: ``folder`` holds a LoRA adapter whose base model has no name or path.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    with _no_progress_bars():
        model = _load(folder, trust_remote_code).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        )
    new = tokens[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def _load(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code
        )
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise RunError(
            f"{folder}: a LoRA adapter without its base model's name; load the base model and "
            "use peft.PeftModel.from_pretrained"
        )
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=trust_remote_code)
    return PeftModel.from_pretrained(model, str(folder))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws one over the weights of the smallest model, in the middle of a log."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
