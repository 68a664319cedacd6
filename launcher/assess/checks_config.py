"""What would become of the configuration's job now: the verdict of ``launcher.verdict``."""

from __future__ import annotations

from launcher.assess.finding import Finding, fail, ok, unknown, warn
from launcher.verdict.judge import Outcome, Verdict
from launcher.verdict.permit import verdict_lines

ID = "config.verdict"


def judge_verdict(verdict: Verdict | None, config: str) -> Finding:
    """Only what can never run fails; a queue is no fault, if anyone can say how long it is."""
    plan = f"`python -m launcher plan {config}`"
    if verdict is None:
        return ok(ID, f"{config} can be planned; it would run on this machine, without a queue")
    evidence = "; ".join(verdict_lines(verdict))
    if verdict.outcome is Outcome.IMPOSSIBLE:
        return fail(ID, evidence, f"change the configuration; {plan} shows the request")
    if verdict.outcome is Outcome.UNKNOWN:
        return unknown(ID, evidence, f"{plan} when Slurm answers")
    if verdict.outcome is Outcome.WAITS and verdict.wait_s is None:
        return warn(ID, evidence, f"take what starts sooner; {plan} shows the request")
    return ok(ID, evidence)


def look_at_config(config: str) -> list[Finding]:
    """Plan the configuration, and ask Slurm about it; refusals of the plan are findings."""
    from launcher.prepare import prepare
    from train.errors import UserError

    try:
        verdict = prepare(config, plan_only=True).verdict()
    except UserError as error:
        said = "; ".join(str(error).splitlines())
        return [fail(ID, said, f"correct it; `python -m launcher plan {config}` shows it again")]
    return [judge_verdict(verdict, config)]
