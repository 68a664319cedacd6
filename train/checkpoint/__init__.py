"""Crash-safe, verified, elastic checkpoints.

``state``, ``manifest`` and ``folders`` are light: launcher and monitor read checkpoints with them.
The others need torch, so nothing is imported here.

    state         what is kept beside the tensors
    manifest      what belongs to a checkpoint, and whether it is all there
    folders       names, publishing and pruning on disk
    staging       copies of tensors that training may not change
    tensors       model and optimizer as flat name -> tensor, and back
    storage       torch.distributed.checkpoint in, files out, and back
    hf_weights    whole tensors as safetensors that from_pretrained reads
    agreement     what all ranks think
    checkpointer  save, load, fall back
"""

from __future__ import annotations
