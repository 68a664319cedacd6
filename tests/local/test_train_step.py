"""One step on several ranks computes what plain torch computes on one, whatever the features."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from submitrain.config import RunConfig
from submitrain.events import Kind, read_events
from submitrain.run_folder import RunDir
from submitrain.train.context import RankContext
from submitrain.train.data.batch import MicroBatch, empty_batch
from submitrain.train.optim import LearningRate
from tests import ranks
from tests.forked import run_forked, train
from tests.local.test_model_build import Vocabulary, saved_model
from tests.tiny import losses, tiny_config

pytestmark = pytest.mark.ranks

DOCS = [np.random.RandomState(i).randint(1, 101, n) for i, n in enumerate((5, 17, 3, 9, 22, 2, 11))]
LR, DECAY, CLIP = 1e-2, 0.1, 0.5


def micro_batch(docs: list[np.ndarray]) -> MicroBatch:
    if not docs:
        return empty_batch()
    lengths = [len(doc) for doc in docs]
    labels = np.concatenate([np.append(doc[1:], -100) for doc in docs])
    positions = np.flatnonzero(labels != -100)
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(docs))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        labels=torch.from_numpy(labels)[None],
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        max_seqlen=max(lengths),
        label_positions=torch.from_numpy(positions),
        doc_ids=tuple(range(len(docs))),
        tokens=sum(lengths),
        label_tokens=len(positions),
    )


def make_stepper(context: RankContext, folder: str, **sections: Any) -> Any:
    """A stepper for the pretrained model in ``folder``."""
    from submitrain.train.distributed.groups import join
    from submitrain.train.model.build import build_model, fill_weights
    from submitrain.train.optim import build_optimizer
    from submitrain.train.step import Stepper

    config = RunConfig.model_validate(
        {
            "model": {"pretrained_model_name_or_path": folder, "torch_dtype": "float32"},
            "optimizer": {"lr": LR, "weight_decay": DECAY},
            "clip_grad_norm": {"max_norm": CLIP},
            "slurm": {"ntasks_per_node": context.world_size},
            **sections,
        }
    )
    world = join(context, config.distributed)
    built = build_model(config, Vocabulary(), world, local_rank=context.local_rank, accumulation=2)
    fill_weights(built, config, world)
    return Stepper(
        model=built.language_model,
        optimizer=build_optimizer(built.module, config.optimizer),
        policy=built.policy,
        world=world,
        max_grad_norm=config.max_grad_norm,
    )


def one_step(context: RankContext, folder: str, sections: dict[str, Any]) -> dict[str, Any]:
    """Work of a rank: one optimizer step on its share of DOCS, in two micro-batches."""
    from submitrain.train.step import agree

    stepper = make_stepper(context, folder, **sections)
    mine = DOCS[context.rank :: context.world_size]
    batches = [micro_batch(mine[:1]), micro_batch(mine[1:])]
    agreed = agree(batches, context.stop.reason, stepper.world)
    result = stepper.forward_backward(batches, agreed.label_tokens)
    stepper.optimizer_step(result.grad_norm)
    weights = {
        name: p.full_tensor().detach().numpy()
        for name, p in stepper.model.module.named_parameters()
    }
    return {"loss": result.loss, "grad_norm": result.grad_norm, "weights": weights}


def plain_step(model: torch.nn.Module) -> dict[str, Any]:
    """The same step in plain torch: no FSDP, no packing, one document after the other."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": vectors, "weight_decay": 0.0}], lr=LR, weight_decay=DECAY
    )
    labels = sum(len(doc) - 1 for doc in DOCS)
    total = torch.zeros(())
    for doc in DOCS:
        ids = torch.from_numpy(doc)[None]
        logits = model(ids, use_cache=False).logits[0]
        total = total + F.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum")
    (total / labels).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return {"loss": float(total.detach()) / labels, "grad_norm": float(norm), "weights": weights}


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"training_optimizations": {"activation_checkpointing": True}},
    "resharded": {"distributed": {"reshard_after_forward": True, "defer_grad_sync": False}},
    "synchronous": {"distributed": {"reshard_after_forward": False, "defer_grad_sync": False}},
    "eager": {"model": {"attn_implementation": "eager", "torch_dtype": "float32"}},
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_step_on_three_ranks_is_the_plain_step(tmp_path: Path, feature: str, tied: bool) -> None:
    folder = str(tmp_path / "model")
    reference = saved_model(
        tmp_path / "model", "llama", torch.float32, tie_word_embeddings=tied
    ).train()
    sections = {name: dict(values) for name, values in FEATURES[feature].items()}
    if "model" in sections:
        sections["model"]["pretrained_model_name_or_path"] = folder
    got = run_forked(3, one_step, tmp_path / "run", folder, sections)
    expected = plain_step(reference)
    assert expected["grad_norm"] > CLIP
    for result in got:
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert result["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
        for name, value in expected["weights"].items():
            np.testing.assert_allclose(
                result["weights"][name], value, rtol=1e-4, atol=2e-5, err_msg=name
            )


@pytest.mark.parametrize("deferred", [False, True], ids=["synchronous", "deferred"])
def test_hybrid_shards_compute_what_full_shards_compute(tmp_path: Path, deferred: bool) -> None:
    folder = str(tmp_path / "model")
    saved_model(tmp_path / "model", "llama", torch.float32)
    hybrid: dict[str, Any] = {"distributed": {"dp_replicate_size": 2, "defer_grad_sync": deferred}}
    full = run_forked(4, one_step, tmp_path / "full", folder, {})[0]
    for result in run_forked(4, one_step, tmp_path / "hybrid", folder, hybrid):
        assert result["loss"] == pytest.approx(full["loss"], rel=1e-6)
        assert result["grad_norm"] == pytest.approx(full["grad_norm"], rel=1e-6)
        for name, value in full["weights"].items():
            np.testing.assert_allclose(result["weights"][name], value, rtol=1e-4, atol=2e-5)


def broken_step(context: RankContext, folder: str) -> tuple[bool, bool, bool]:
    """Work of a rank: rank 1 alone has a weight that is not finite, and the step is not admitted.

    Is the loss finite; are the weights said to be; was anything changed?
    """
    stepper = make_stepper(context, folder)
    parameter = next(iter(stepper.model.module.parameters()))
    if context.rank == 1:
        parameter.to_local().detach().view(-1)[0] = math.nan
    before = [p.to_local().detach().clone() for p in stepper.model.module.parameters()]
    result = stepper.forward_backward([micro_batch(DOCS)], 60)
    if math.isfinite(result.loss):
        stepper.optimizer_step(result.grad_norm)
    stepper.clear_gradients()
    after = [p.to_local() for p in stepper.model.module.parameters()]
    same = all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True)
    )
    untouched = same and not stepper.optimizer.state
    return math.isfinite(result.loss), stepper.weights_finite(), untouched


def test_not_finite_on_one_rank_is_seen_by_all_before_the_optimizer(tmp_path: Path) -> None:
    saved_model(tmp_path / "model", "llama", torch.float32)
    seen = run_forked(2, broken_step, tmp_path / "run", str(tmp_path / "model"))
    assert seen == [(False, False, True)] * 2


def brief(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    steps = {"max_steps": 6, "grad_acc_steps": 2, "ckpt_every_steps": None}
    config = tiny_config(folder, **{"step_scheduler": steps, **sections})
    config["model"]["config"]["attention_dropout"] = 0.0
    return config


def test_bfloat16_stays_finite_and_learns(tmp_path: Path) -> None:
    config = brief(tmp_path, optimizer={"lr": 1e-2})
    run_forked(2, train, tmp_path / "float32", config)
    config["model"]["torch_dtype"] = "bfloat16"
    run_forked(2, train, tmp_path / "bfloat16", config)
    values = losses(tmp_path / "bfloat16")
    assert values == pytest.approx(losses(tmp_path / "float32"), rel=0.01)
    assert values[6] < values[1] - 0.1


def test_compiled_blocks_keep_the_loss(tmp_path: Path) -> None:
    config = brief(tmp_path)
    config["step_scheduler"]["max_steps"] = 3
    run_forked(1, train, tmp_path / "plain", config)
    config["training_optimizations"] = {"use_compile": True}
    # In processes of their own: importing torch's compiler warns of its own deprecations.
    ranks.train(tmp_path / "compiled", config, 1)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_validation_loss_is_the_exact_mean_over_the_data(tmp_path: Path) -> None:
    config = brief(tmp_path)
    config["validation_dataset"] = {**config["dataset"], "split": "train[:37]"}
    config["dataset"]["split"] = "train[37:]"
    config["checkpoint"]["save_consolidated"] = "final"
    run_forked(3, train, tmp_path / "run", config)
    run_dir = RunDir(tmp_path / "run")
    [event] = read_events(run_dir.events(0), kinds=frozenset({Kind.VALIDATION}))
    expected, tokens = plain_validation(run_dir.export, config)
    assert (event["samples"], event["label_tokens"]) == (37, tokens)
    assert event["loss"] == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def plain_validation(export: Path, config: dict[str, Any]) -> tuple[float, int]:
    """Mean loss of the exported model, document by document, through transformers alone."""
    from transformers import AutoTokenizer

    from submitrain.train.data.prepare import DataContext, prepare_store

    settings = RunConfig.model_validate(config).validation_dataset
    assert settings is not None
    tokenizer = AutoTokenizer.from_pretrained(export)
    store = prepare_store(settings, tokenizer, DataContext(0, 1, export.parent.parent / ".cache"))
    model = AutoModelForCausalLM.from_pretrained(export).eval()
    total, count = 0.0, 0
    for index in range(len(store)):
        ids, is_label = store.document(index)
        tokens = torch.from_numpy(ids.astype(np.int64))
        logits = model(tokens[None]).logits[0, :-1]
        mask = torch.from_numpy(is_label.copy())[1:]
        total += float(F.cross_entropy(logits[mask], tokens[1:][mask], reduction="sum"))
        count += int(mask.sum())
    return total / count, count


def test_lora_trains_adapters_only_and_resumes(tmp_path: Path) -> None:
    config = brief(tmp_path, peft={"dim": 4}, optimizer={"lr": 1e-2})
    config["step_scheduler"]["ckpt_every_steps"] = 3
    run_forked(2, train, tmp_path / "whole", config)
    run_forked(2, train, tmp_path / "cut", config, 3)
    run_forked(2, train, tmp_path / "cut", config)
    values = losses(tmp_path / "whole")
    assert values[6] < values[1]
    assert losses(tmp_path / "cut") == values
    [setup] = read_events(RunDir(tmp_path / "whole").events(0), kinds=frozenset({Kind.SETUP}))
    newest = sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))[-1]
    stored = sum(f.stat().st_size for f in (newest / "model").rglob("*.safetensors"))
    assert stored < 4 * setup["parameters"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks
def test_a_trained_adapter_is_exported_so_that_peft_finds_all_of_it(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = brief(tmp_path, peft={"dim": 4}, checkpoint={"save_consolidated": "final"})
    run_forked(2, train, tmp_path / "run", config)
    export = tmp_path / "run" / "export"
    values = {**config["model"]["config"], "vocab_size": len(AutoTokenizer.from_pretrained(export))}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    loaded = PeftModel.from_pretrained(base, str(export))  # warns of missing keys: an error here
    trained = [p for name, p in loaded.named_parameters() if "lora_B" in name]
    assert trained
    assert all(p.abs().max() > 0 for p in trained)


def test_learning_rate_is_a_pure_function_of_the_step() -> None:
    rate = LearningRate(peak=1.0, minimum=0.1, warmup_steps=4, decay_steps=12, style="cosine")
    assert [rate.at(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate.at(4) == 1.0
    assert rate.at(8) == pytest.approx(0.55)
    assert [rate.at(12), rate.at(99)] == pytest.approx([0.1, 0.1])
    linear = LearningRate(peak=1.0, minimum=0.0, warmup_steps=0, decay_steps=10, style="linear")
    assert linear.at(5) == pytest.approx(0.5)
    constant = LearningRate(peak=1.0, minimum=0.0, warmup_steps=2, decay_steps=9, style="constant")
    assert [constant.at(1), constant.at(7), constant.at(500)] == [1.0, 1.0, 1.0]
