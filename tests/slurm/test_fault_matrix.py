"""The fault matrix; ``python -m tests.faults`` prints the table.

One class is one cluster and the courses that are played on it, so that several workers of pytest
play side by side (``--dist loadscope``). The undisturbed runs are made once for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from submitrain.launcher import Run
from tests.cluster.fixtures import require_slurm
from tests.faults.drive import Played
from tests.faults.judge import Judge, Verdict
from tests.faults.rows import Course, Outside
from tests.faults.site import SITES
from tests.faults.stage import Stage
from tests.faults.storm import FROM_OUTSIDE, storm
from tests.faults.table import COURSES, DEATHS, HANGS, NOTICE, NUMBERS, OUTSIDE

# The first row of a course waits for the whole course.
pytestmark = [pytest.mark.slurm, pytest.mark.ranks, pytest.mark.timeout(2400)]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the undisturbed runs, one for all workers of pytest."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"


@pytest.fixture(scope="class")
def stage(tmp_path_factory: pytest.TempPathFactory, undisturbed: Path) -> Iterator[Stage]:
    """Plays a course when its first row is asked for; the others read from the same run."""
    for options in SITES.values():
        require_slurm(options)
    if os.geteuid() != 0:
        pytest.fail("mounting file systems needs root: run this test as root, e.g. in a container")
    stage = Stage(tmp_path_factory.mktemp("faults"), undisturbed)
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The rows and the courses of a class."""
    courses: tuple[Course, ...] = getattr(metafunc.cls, "courses", ())
    if "row" in metafunc.fixturenames:
        rows = [
            pytest.param(course, row.name, id=f"{course.name}-{row.name}")
            for course in courses
            for row in course.rows
        ]
        metafunc.parametrize(("course", "row"), rows)
    elif "course" in metafunc.fixturenames:
        metafunc.parametrize("course", [pytest.param(one, id=one.name) for one in courses])


class Rows:
    """What holds for every row of a course, and for the run as a whole."""

    courses: ClassVar[tuple[Course, ...]]

    def test_a_fault_is_judged_right_and_changes_nothing(
        self, stage: Stage, course: Course, row: str, second_try: bool
    ) -> None:
        found = verdict(stage, course, row, anew=second_try)
        assert not found.problems, f"{found.problems}\n{found.explanation}"

    def test_a_run_through_all_of_them_finishes_and_is_the_undisturbed_run(
        self, stage: Stage, course: Course, second_try: bool
    ) -> None:
        found = verdict(stage, course, "the whole run", anew=second_try)
        assert not found.problems, found.problems


class TestHangs(Rows):
    courses = (HANGS,)


class TestDeaths(Rows):
    courses = (DEATHS, NUMBERS)


class TestFromOutside(Rows):
    courses = (OUTSIDE, NOTICE)


PLAYED = [course for one in Rows.__subclasses__() for course in one.courses]


def test_every_course_is_played_here_or_by_command() -> None:
    assert {course.name for course in PLAYED} == {
        name for name, course in COURSES.items() if not course.by_command
    }


def test_no_row_passes_on_a_run_to_which_nothing_happened(
    tmp_path: Path, undisturbed: Path
) -> None:
    """A fault that did not strike is a failed row, however well the run went."""
    for course in PLAYED:
        if course.data:
            continue
        quiet = Stage(tmp_path, undisturbed).reference(course)
        played = Played(course, Run(quiet), state="finished")
        *rows, whole = Judge(played, quiet).verdicts()
        assert not whole.problems
        assert all("the fault did not fire" in row.problems for row in rows)


def test_a_storm_is_drawn_by_its_seed_and_leaves_no_act_out() -> None:
    assert storm(20, seed=1) == storm(20, seed=1)
    assert storm(20, seed=1) != storm(20, seed=2)
    acts = {row.fault.act for row in storm(60, seed=3).rows if isinstance(row.fault, Outside)}
    assert acts == set(FROM_OUTSIDE)
