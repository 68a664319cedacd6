"""A plain torch loop over many nodes (FSDP2, sharded checkpoints) that survives what happens.

    python -m launcher configs/own_torch_loop.yaml

What it trains is beside the point: a small network learns the sum of numbers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from submitrain.train.user_function.context import RunContext

SAMPLES, WIDTH = 512, 32


def train(
    ctx: RunContext,
    steps: int,
    save_every: int = 10,
    global_batch_size: int = 16,
    lr: float = 1e-2,
) -> None:
    """Train ``steps`` optimizer steps, saving every ``save_every`` of them."""
    ctx.init_process_group()
    inputs, targets = make_data(ctx.seed)
    model = build_model(ctx)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    step = load(ctx, model, optimizer)
    ctx.announce(total_steps=steps)
    order = ctx.data_order(SAMPLES)

    while step < steps and not ctx.should_stop(step):
        ctx.reseed(step)  # dropout becomes a function of seed, step and rank
        mine = order.of_step(step, global_batch_size)
        loss = one_step(model, optimizer, inputs[mine].to(ctx.device), targets[mine].to(ctx.device))
        step += 1
        ctx.log(step=step, loss=loss, lr=lr)
        if step % save_every == 0:
            save(ctx, model, optimizer, step)
    save(ctx, model, optimizer, step)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """One optimizer step on this rank's samples; the mean loss over all ranks."""
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach()
    dist.all_reduce(mean)
    return mean.item() / dist.get_world_size()


def save(ctx: RunContext, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Every rank writes its shards into the same folder; then they are hashed and published."""
    tensors, optim = get_state_dict(model, optimizer)
    state = {"model": tensors, "optimizer": optim}
    ctx.publish_checkpoint(step, lambda folder: dcp.save(state, checkpoint_id=folder))


def load(ctx: RunContext, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Go on from the newest whole checkpoint; returns the steps that are done."""
    found = ctx.latest_checkpoint()
    if found is None:
        return 0
    tensors, optim = get_state_dict(model, optimizer)
    state = {"model": tensors, "optimizer": optim}
    dcp.load(state, checkpoint_id=found.folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    return found.step


def build_model(ctx: RunContext) -> nn.Module:
    """The same first weights on every rank, then sharded."""
    torch.manual_seed(ctx.seed)
    model = nn.Sequential(
        nn.Linear(4, WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, 1),
    ).to(ctx.device)  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def make_data(seed: int) -> tuple[Tensor, Tensor]:
    """Rows of four numbers, and their sums."""
    inputs = torch.rand(SAMPLES, 4, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs.sum(dim=1, keepdim=True)
