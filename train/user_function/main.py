"""Calls the user's training function on this rank, and records how it ended."""

from __future__ import annotations

from submitrain.config import RunConfig
from submitrain.errors import CheckpointError, RunError
from submitrain.events import EXIT_FINISHED, EXIT_STOPPED, Kind, Phase
from submitrain.imports import load_component
from submitrain.signals import StopReason
from submitrain.train import faults
from submitrain.train.callbacks.trackers import open_trackers
from submitrain.train.context import RankContext
from submitrain.train.distributed.groups import choose_device, meet, set_threads
from submitrain.train.distributed.hardware import describe
from submitrain.train.user_function.context import RunContext
from submitrain.train.user_function.saving import Peers, Saving


def main(context: RankContext, config: RunConfig) -> int:
    """Run the function to its end (exit code 0), or to an agreed stop (85).

    Raises:
        UserError: the function cannot be imported.
        RunError: the run failed, or the function left by ``sys.exit`` with an error.
    """
    assert config.entry is not None
    peers = _meet(context, config)
    context.enter(Phase.BUILD)
    faults.at(faults.Moment.BUILD)
    function = load_component(config.entry.target, "entry._target_")
    trackers = open_trackers(
        config, rank=context.rank, run_id=context.run_dir.run_id, folder=context.run_dir.root
    )
    code = 1
    try:
        saving = Saving(peers, config)
        run = RunContext(context, config, saving, trackers)
        try:
            function(run, **config.entry.extra)
        except SystemExit as error:
            if error.code not in (None, 0):
                raise RunError(f"the training function left by sys.exit({error.code!r})") from error
        code = _end(run, context, saving)
    finally:
        trackers.close(code)
    return code


def _meet(context: RankContext, config: RunConfig) -> Peers:
    """Device and store of this rank; the process group is the function's to form."""
    settings = config.distributed
    threads = set_threads(context.local_world_size)
    context.enter(Phase.RENDEZVOUS)
    faults.at(faults.Moment.RENDEZVOUS)
    device = choose_device(settings.backend, context.local_rank)
    context.on_cpu = device.type == "cpu"
    peers = Peers(context, settings, meet(context, timeout_s=settings.timeout_s), device)
    peers.publish_address()
    backend = "nccl" if device.type == "cuda" else "gloo"
    context.events.write(Kind.SETUP, device=describe(device), threads=threads, backend=backend)
    return peers


def _end(run: RunContext, context: RankContext, saving: Saving) -> int:
    """All ranks have returned: finished, or stopped as agreed.

    Raises:
        CheckpointError: the function's last save failed, so what it made is not on disk.
    """
    peers = saving.peers
    step = context.step = run.finished_steps
    context.enter(Phase.EXIT)
    peers.wait_for_all("returned")
    if run.stop_reason:
        context.events.write(
            Kind.STOPPED,
            step=step,
            reason=run.stop_reason.name.lower(),
            signalled=context.stop.reason is StopReason.TERMINATED,
        )
        peers.leave()
        return EXIT_STOPPED
    if saving.problem:
        raise CheckpointError(f"the last checkpoint was not saved: {saving.problem}")
    context.events.write(Kind.FINISH, step=step)
    faults.at(faults.Moment.EXIT)
    peers.leave()
    return EXIT_FINISHED
