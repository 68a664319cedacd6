"""The ranks' environment for the terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.environment.provenance import Origin, Variable
from train.config import RunConfig

_WIDTH = 28
_VALUE = 60
_TITLES = {
    Origin.CONFIGURATION: "from the configuration",
    Origin.SHELL: "from this shell",
    Origin.DEFAULT: "from submitrain",
    Origin.JOB: "from Slurm, in the job",
}


def in_short(variables: Sequence[Variable]) -> str:
    """One line for the plan."""
    count = dict.fromkeys(Origin, 0)
    for one in variables:
        count[one.origin] += 1
    mattering = sum(one.matters for one in variables if one.origin is Origin.SHELL)
    return (
        f"{count[Origin.CONFIGURATION]} variables from the configuration, "
        f"{count[Origin.SHELL]} from this shell ({mattering} that matter): `plan --env` lists them"
    )


def listing(variables: Sequence[Variable], config: RunConfig) -> str:
    """All that matters by origin, the rest by name; then what the job itself may change."""
    lines = ["environment of the ranks"]
    for origin in Origin:
        shown = [one for one in variables if one.origin is origin and one.matters]
        rest = [one.name for one in variables if one.origin is origin and not one.matters]
        if shown or rest:
            lines.append(f"  {_TITLES[origin]}")
        lines += [_row(one) for one in shown]
        if rest:
            lines.append(f"    and {len(rest)} more: {', '.join(rest)}")
    changes = [f"module load {' '.join(config.slurm.modules)}"] if config.slurm.modules else []
    changes += config.slurm.setup
    if changes:
        lines.append("  run in the job before all this, and may change it")
        lines += [f"    {line}" for line in changes]
    return "\n".join(lines)


def _row(one: Variable) -> str:
    value = "(known in the job)" if one.value is None else one.value or "(empty)"
    short = value if len(value) <= _VALUE else f"{value[: _VALUE - 3]}..."
    where = "" if one.origin is Origin.SHELL else f"  [{one.where}]"
    return f"    {one.name:<{_WIDTH}} {short}{where}"
