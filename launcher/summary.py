"""What a run achieved, from its run folder, and what to do next: the summary at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from submitrain.events import Kind, number, read_events
from submitrain.run_facts import read_evidence
from submitrain.run_folder import RunDir
from submitrain.status import RunState, RunStatus, first_failure

_RESULT_KINDS = frozenset({Kind.STEP, Kind.VALIDATION, Kind.SAMPLE, Kind.EXPORT})


@dataclass(frozen=True)
class RunResult:
    """What a run achieved. Losses are per token; ``tokens_per_s`` is the median over all ranks."""

    status: RunStatus
    steps: int
    tokens: int
    first_loss: float | None
    last_loss: float | None
    first_validation_loss: float | None
    last_validation_loss: float | None
    tokens_per_s: float | None
    restarts: int
    export: Path | None
    prompt: str | None
    sample: str | None


def read_result(folder: Path, status: RunStatus) -> RunResult:
    """Read all of rank 0's events once."""
    steps: dict[int, dict[str, object]] = {}
    validations: dict[int, float] = {}
    others: dict[str, dict[str, object]] = {}
    for event in read_events(RunDir(folder).events(0), kinds=_RESULT_KINDS):
        if event["kind"] == Kind.STEP:
            steps[event["step"]] = event
        elif event["kind"] == Kind.VALIDATION:
            validations[event["step"]] = event["loss"]
        else:
            others[event["kind"]] = event
    losses = [number(steps[step].get("loss")) for step in sorted(steps)]
    speeds = [value for event in steps.values() if (value := number(event.get("tokens_per_s")))]
    evaluated = [number(validations[step]) for step in sorted(validations)]
    sample, export = others.get(Kind.SAMPLE, {}), RunDir(folder).export
    return RunResult(
        status=status,
        steps=max([status.step or 0, *steps]),
        tokens=int(number(steps[max(steps)].get("total_tokens")) or 0) if steps else 0,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        first_validation_loss=evaluated[0] if evaluated else None,
        last_validation_loss=evaluated[-1] if evaluated else None,
        tokens_per_s=statistics.median(speeds) if speeds else None,
        restarts=max(0, status.attempt - 1),
        export=export if (export / "config.json").exists() else None,
        prompt=_text(sample.get("prompt")),
        sample=_text(sample.get("text")),
    )


def summary_rows(result: RunResult) -> Iterator[tuple[str, str]]:
    """Label and text of each line of the summary; lines without a fact are left out."""
    status = result.status
    yield "state", f"{status.state}" + (f": {status.why}" if status.why else "")
    total = f" of {status.total_steps}" if status.total_steps else ""
    tokens = f", {result.tokens:,} tokens" if result.tokens else ""
    yield "steps", f"{result.steps}{total}{tokens}"
    if result.last_loss is not None:
        yield "train loss", arrow(result.first_loss, result.last_loss)
    if result.last_validation_loss is not None:
        yield "validation loss", arrow(result.first_validation_loss, result.last_validation_loss)
    if result.tokens_per_s is not None:
        yield "tokens/s", f"{result.tokens_per_s:,.0f} (median)"
    if result.restarts:
        yield "attempts", f"{status.attempt}"
    folder = shown(Path(status.folder))
    if status.checkpoints:
        names = ", ".join(str(step) for step in status.checkpoints)
        yield "checkpoints", f"steps {names} in {folder / 'checkpoints'}"
    if result.export:
        yield "model", str(shown(result.export))
    if result.sample is not None:
        prompt = result.prompt or ""
        yield "sample", f"{prompt}{result.sample.removeprefix(prompt)}"
    yield "logs", str(folder / "logs" / f"attempt-{status.attempt:03d}")


def next_steps(result: RunResult) -> list[str]:
    """Commands worth a try after this end."""
    status = result.status
    if status.state is RunState.FINISHED:
        found = [f"python -m launcher status {status.run_id}"]
        found.append(f"python -m monitor report {status.run_id}")
        if result.export:
            found.append(
                'python -c "from transformers import AutoModelForCausalLM as M; '
                f"print(M.from_pretrained('{shown(result.export)}'))\""
            )
        return found
    commands = [f"python -m launcher logs {status.run_id}"]
    if not status.user_error:
        commands.append(f"python -m launcher resume {status.run_id}")
    return commands


def failure_line(folder: Path) -> str | None:
    """One line on the rank that failed first by itself, or None when no rank left a word."""
    failure = first_failure(read_evidence(folder).failures)
    if failure is None:
        return None
    lines = str(failure.get("message", "")).strip().splitlines()
    message = lines[0] if lines else ""
    where = f" at {failure['where']}" if failure.get("where") else ""
    exception = str(failure.get("exception", "error")).rpartition(".")[2]
    return f"rank {failure.get('rank')}{where}: {exception}: {message}"


def shown(path: Path) -> Path:
    """The path as one would type it here: relative where it lies below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def arrow(first: float | None, last: float | None) -> str:
    """``5.5012 -> 2.1034``"""
    return " -> ".join(f"{value:.4f}" for value in (first, last) if value is not None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
