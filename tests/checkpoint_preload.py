"""Imported once by the server that test ranks are forked from: what would take seconds in each.

Building one model here brings in the some 600 modules that transformers imports only then.
"""

import torch.distributed.checkpoint.hf_storage
import torch.distributed.fsdp
import torch.distributed.tensor

import submitrain.train.checkpoint.checkpointer
import submitrain.train.export  # noqa: F401
from tests.checkpoint_models import llama

torch.set_num_threads(1)
llama()
