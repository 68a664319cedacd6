"""What a drill will do, worked out before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.drill.scenarios import Place, Scenario, Steps, choose
from launcher.drill.settings import Settings, settings_of
from launcher.prepare import prepare
from launcher.verdict.permit import permit


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    config: str
    overrides: tuple[str, ...] = ()
    cluster: str | None = None
    steps: int = 20
    shrink: bool = False
    faults: str | None = None


@dataclass(frozen=True)
class DrillPlan:
    """A drill that can be held."""

    request: Request
    place: Place
    steps: Steps
    settings: Settings
    scenarios: tuple[Scenario, ...]
    runs_dir: Path
    cluster_reason: str

    @property
    def overrides(self) -> list[str]:
        """The user's, then the drill's."""
        return [*self.request.overrides, *self.settings.overrides]


def plan_drill(request: Request) -> DrillPlan:
    """Work out a drill; nothing is started.

    Raises:
        UserError: the configuration, the faults or the number of steps are wrong.
    """
    theirs = prepare(request.config, overrides=request.overrides, cluster=request.cluster)
    settings = settings_of(theirs.loaded.config, steps=request.steps, shrink=request.shrink)
    ours = prepare(
        request.config,
        overrides=[*request.overrides, *settings.overrides],
        cluster=theirs.cluster.name,
    )
    permit(ours.verdict(), way_out="ask for what it has")
    place = Place(theirs.cluster.name, ours.loaded.config)
    return DrillPlan(
        request=request,
        place=place,
        steps=Steps.of(request.steps),
        settings=settings,
        scenarios=tuple(choose(request.faults, place)),
        runs_dir=theirs.runs_dir,
        cluster_reason=theirs.cluster.reason,
    )
