"""Export: the trained model as a folder that ``from_pretrained`` reads, and a text it generates.

Whole tensors are gathered one after another; at no time does a rank hold more than one of them.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from submitrain.errors import CheckpointError, RunError
from submitrain.fence import Fence
from submitrain.run_folder import fsync_dir
from submitrain.train.checkpoint.folders import fsync_file
from submitrain.train.checkpoint.hf_weights import Layout, Pretrained
from submitrain.train.checkpoint.storage import RankError, RankGroup
from submitrain.train.checkpoint.tensors import model_tensors


def export_pretrained(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    fence: Fence | None = None,
) -> int:
    """Write ``model`` to ``folder`` for ``from_pretrained``; all ranks call it; returns the bytes.

    Rank 0 writes one file, or several of 5 GB and an index. With PEFT only the adapter is written,
    in peft's form. ``dtype`` is the type of the weights; None keeps the master weights' own. The
    folder appears by a rename, whole or not at all; an older export there is replaced. ``fence``
    keeps an attempt that has a successor from that.

    Raises:
        FencedError: a newer attempt owns the run folder.
        CheckpointError: it could not be written; ``folder`` is as it was.
    """
    ranks = RankGroup(dist.group.WORLD if dist.is_initialized() else None)
    layout = Pretrained(tokenizer, dtype).layout(model)
    fence = fence or Fence()
    temporary = _scratch(folder, "tmp", fence)
    try:
        ranks.on_rank0(lambda: _begin(folder, fence))
        ranks.together(lambda: _gather_and_write(model, layout, temporary, ranks.rank))
        return ranks.on_rank0(lambda: _publish(folder, fence))
    except RankError as error:
        if ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        fence.check(f"export to {folder}")
        raise CheckpointError(f"{folder}: the model was not exported: {error}") from error


def _scratch(folder: Path, kind: str, fence: Fence) -> Path:
    """``.export.tmp-3``: attempt 3 writes it; ``.export.old-3``: attempt 3 is deleting it."""
    return folder.with_name(f".{folder.name}.{kind}-{fence.attempt}")


def _begin(folder: Path, fence: Fence) -> None:
    """Make the empty temporary folder; older attempts' ones go, so none is published late."""
    fence.check(f"export to {folder}")
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(tmp|old)-(\d+)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    retired = _scratch(folder, "old", fence)
    for path in list(folder.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and int(match.group(2)) <= fence.attempt:
            shutil.rmtree(retired, ignore_errors=True)
            with suppress(FileNotFoundError):
                path.rename(retired)
            shutil.rmtree(retired, ignore_errors=True)
    _scratch(folder, "tmp", fence).mkdir()


def _gather_and_write(model: nn.Module, layout: Layout, temporary: Path, rank: int) -> None:
    tensors = model_tensors(model)
    whole = (
        tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for file in layout.files()
        for tensor in (tensors[weight.source] for weight in file.weights)
    )
    try:
        if rank == 0:
            layout.write(temporary, lambda _name: next(whole))
    finally:
        for _ in whole:  # gathering is collective: a rank with a full disk takes part to the end
            pass


def _publish(folder: Path, fence: Fence) -> int:
    """Make the temporary folder durable and rename it into place; returns its size in bytes."""
    temporary, replaced = _scratch(folder, "tmp", fence), _scratch(folder, "old", fence)
    paths = [path for path in temporary.rglob("*") if path.is_file()]
    for path in paths:
        fsync_file(path)
    fsync_dir(temporary)
    total = sum(path.stat().st_size for path in paths)
    shutil.rmtree(replaced, ignore_errors=True)
    with fence.moved_aside(folder, replaced):
        temporary.rename(folder)
    fsync_dir(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
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
    from transformers.utils import logging

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    logging.disable_progress_bar()  # one over the smallest model's weights, in the middle of a log
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
