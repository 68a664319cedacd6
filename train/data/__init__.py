"""Training data: read samples, tokenize them once, pack, and load micro-batches from any position.

    sources (files, hub, stdlib, custom) -> samples -> encode -> store -> packing -> batch -> loader

``prepare`` is the way in: ``prepare_tokenizer`` and ``prepare_data``.
"""

from __future__ import annotations
