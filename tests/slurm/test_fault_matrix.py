"""The fault matrix and a short storm; ``python -m tests.faults`` prints the table."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from submitrain.launcher import Run
from tests.cluster.fixtures import require_slurm
from tests.faults.drive import Played
from tests.faults.judge import Judge, Verdict
from tests.faults.rows import Course, Outside
from tests.faults.site import SITES
from tests.faults.stage import Stage
from tests.faults.storm import FROM_OUTSIDE, storm
from tests.faults.table import COURSES

# The first row of a course waits for the whole course.
pytestmark = [pytest.mark.slurm, pytest.mark.ranks, pytest.mark.timeout(2400)]
STORM = storm(6, seed=1)
PLAYED = sorted(
    [*(course for course in COURSES.values() if not course.by_command), STORM],
    key=lambda course: course.site,
    reverse=True,
)
"""Sorted by site: one cluster at a time."""
ROWS = [
    pytest.param(course, row.name, id=f"{course.name}-{row.name}")
    for course in PLAYED
    for row in course.rows
]
WHOLE = [pytest.param(course, id=course.name) for course in PLAYED]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Plays a course when its first row is asked for; the others read from the same run."""
    for options in SITES.values():
        require_slurm(options)
    if os.geteuid() != 0:
        pytest.fail("mounting file systems needs root: run this test as root, e.g. in a container")
    stage = Stage(tmp_path_factory.mktemp("faults"))
    yield stage
    stage.close()


@pytest.fixture
def second_try(request: pytest.FixtureRequest) -> bool:
    """Whether this test failed and runs again (tests/conftest.py)."""
    return int(getattr(request.node, "execution_count", 1)) > 1


def verdict(stage: Stage, course: Course, name: str, *, anew: bool) -> Verdict:
    """The verdict on one row, or on the whole run; a second try plays the course once more."""
    if anew:
        stage.forget(course)
    return next(one for one in stage.verdicts(course) if one.row == name)


@pytest.mark.parametrize(("course", "row"), ROWS)
def test_a_fault_is_judged_right_and_changes_nothing(
    stage: Stage, course: Course, row: str, second_try: bool
) -> None:
    found = verdict(stage, course, row, anew=second_try)
    assert not found.problems, f"{found.problems}\n{found.explanation}"


@pytest.mark.parametrize("course", WHOLE)
def test_a_run_through_all_of_them_finishes_and_is_the_undisturbed_run(
    stage: Stage, course: Course, second_try: bool
) -> None:
    found = verdict(stage, course, "the whole run", anew=second_try)
    assert not found.problems, found.problems


def test_no_row_passes_on_a_run_to_which_nothing_happened(stage: Stage) -> None:
    """A fault that did not strike is a failed row, however well the run went."""
    for course in PLAYED:
        if course.data:
            continue
        quiet = stage.reference(course)
        played = Played(course, Run(quiet), state="finished")
        *rows, whole = Judge(played, quiet).verdicts()
        assert not whole.problems
        assert all("the fault did not fire" in row.problems for row in rows)


def test_a_storm_is_drawn_by_its_seed_and_leaves_no_act_out() -> None:
    assert storm(20, seed=1) == storm(20, seed=1)
    assert storm(20, seed=1) != storm(20, seed=2)
    acts = {row.fault.act for row in storm(60, seed=3).rows if isinstance(row.fault, Outside)}
    assert acts == set(FROM_OUTSIDE)
