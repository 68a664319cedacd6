"""Training of Hugging Face causal LMs: the ranks' side. Knows no scheduler.

The light modules (``config``, ``errors``, ``events``, ``rundir``) import neither torch nor
transformers; ``launcher`` and ``monitor`` may import only those.
"""
