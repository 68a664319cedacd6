"""Names of the packages whose versions matter to a run. Imports nothing."""

PACKAGES = (
    "submitrain",
    "submitit",
    "torch",
    "transformers",
    "tokenizers",
    "torchdata",
    "safetensors",
    "datasets",
    "numpy",
    "peft",
    "wandb",
    "liger-kernel",
    "flash-attn",
    "pydantic",
)
