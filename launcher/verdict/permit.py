"""What a launch makes of a verdict: go on, ask in a terminal, or refuse; prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable

from launcher.verdict.judge import Outcome, Verdict
from train.config.types import format_duration, parse_duration_s
from train.errors import ClusterError, UserError


def permit(
    verdict: Verdict | None,
    *,
    force: bool = False,
    max_wait_s: float | None = None,
    confirm: Callable[[str], bool] | None = None,
    way_out: str = "--force submits it all the same",
) -> None:
    """Return if the job may be submitted; ``confirm`` asks a person who sits at a terminal.

    ``way_out`` says what to do about a job that can never run.

    Raises:
        ClusterError: it can never run, or it waits longer than wanted.
    """
    if verdict is None:
        return
    if verdict.outcome is Outcome.IMPOSSIBLE and force:
        return
    problem = _problem(verdict, max_wait_s, way_out)
    if problem is None or (confirm is not None and confirm(problem)):
        return
    raise ClusterError(problem)


def _problem(verdict: Verdict, max_wait_s: float | None, way_out: str) -> str | None:
    if verdict.outcome is Outcome.IMPOSSIBLE:
        lines = [*verdict.why, *(f"instead: {one}" for one in verdict.suggestions)]
        return "\n".join([*lines, f"Slurm would never start this job; {way_out}"])
    if max_wait_s is None or verdict.outcome is Outcome.STARTS_NOW:
        return None
    if verdict.wait_s is None:
        why = "; ".join(verdict.why) or "Slurm gives no estimate"
        return f"--max-wait: nobody can say how long it would wait ({why}); leave the option out"
    if verdict.wait_s[0] <= max_wait_s:
        return None
    least, limit = format_duration(round(verdict.wait_s[0])), format_duration(round(max_wait_s))
    return (
        f"--max-wait: at most {limit} was asked for, and it would wait {least} or longer (by "
        f"{verdict.source})"
    )


def max_wait_s(text: str | int | None) -> int | None:
    """Seconds of ``--max-wait``; None for no limit.

    Raises:
        UserError: it is no duration.
    """
    try:
        return None if text is None else parse_duration_s(text)
    except ValueError as error:
        raise UserError(f"--max-wait: {error}") from error


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict for a terminal: its outcome with the wait, reasons, what would be better."""
    first = str(verdict.outcome)
    if verdict.wait_s is not None:
        least, most = verdict.wait_s
        upto = "" if most == least else f" to {format_duration(round(most))}"
        first = f"waits about {format_duration(round(least))}{upto}, by {verdict.source}"
    return [first, *verdict.why, *(f"instead: {one}" for one in verdict.suggestions)]
