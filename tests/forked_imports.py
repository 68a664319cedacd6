"""What the fork server of ``tests.forked`` imports once: the recipe and a model's classes."""

import torch
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

import submitrain.train.export
import submitrain.train.recipe  # noqa: F401

torch.set_num_threads(1)
