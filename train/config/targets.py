"""``_target_``: spellings of the NeMo AutoModel family that name something built in here.

That family moved its modules more than once, so of a path in its package only the class and
method count. Imports nothing of this project.
"""

from __future__ import annotations

from collections.abc import Callable

MODEL = "hf_causal_lm"
DISTRIBUTED = "fsdp2"
TEXT = "text_instruction"
STDLIB = "python_stdlib"
LOADER = "torchdata.stateful_dataloader.StatefulDataLoader"
LORA = "lora"

_FAMILY = ("nemo_automodel.",)
_MODELS = {
    f"{name}{method}": MODEL
    for name in ("NeMoAutoModelForCausalLM", "AutoModelForCausalLM")
    for method in ("", ".from_pretrained", ".from_config")
}
_SHARDERS = dict.fromkeys(
    ("NVFSDPManager", "FSDP2Manager", "MegatronFSDPManager", "nvFSDPManager"), DISTRIBUTED
)
_DATA = dict.fromkeys(
    ("TextInstructionDataset", "ColumnMappedTextInstructionDataset", "ChatDataset"), TEXT
)
_ADAPTERS = {"PeftConfig": LORA}


def _spelling(
    builtin: tuple[str, ...], family: dict[str, str], packages: tuple[str, ...] = _FAMILY
) -> Callable[[object], object]:
    def ours(value: object) -> object:
        if not isinstance(value, str) or value in builtin or not value.startswith(packages):
            return value
        return next((name for path, name in family.items() if value.endswith(f".{path}")), value)

    return ours


model_target = _spelling((MODEL,), _MODELS, (*_FAMILY, "transformers."))
distributed_target = _spelling((DISTRIBUTED,), _SHARDERS)
dataset_target = _spelling((TEXT, STDLIB), _DATA)
loader_target = _spelling((LOADER,), {"StatefulDataLoader": LOADER}, ("torchdata.",))
peft_target = _spelling((LORA,), _ADAPTERS)
