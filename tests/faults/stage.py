"""Plays courses: opens the sites they need, makes the undisturbed runs, judges. Everything once."""

from __future__ import annotations

import fcntl
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from submitrain.attempts import read_attempts
from tests.faults.drive import Driver, say
from tests.faults.judge import Judge, Verdict, samples_by_epoch
from tests.faults.rows import Course
from tests.faults.site import Site, course_config, open_site
from tests.tiny import launch_faulty

REFERENCE_S = 600.0


@dataclass
class Stage:
    """Sites, undisturbed runs and verdicts so far; only the last site is kept open."""

    home: Path
    undisturbed: Path | None = None
    """Folder of the undisturbed runs, which several stages may share; by default in ``home``."""
    stack: ExitStack = field(default_factory=ExitStack)
    site: Site | None = None
    judged: dict[str, list[Verdict]] = field(default_factory=dict)

    def verdicts(self, course: Course) -> list[Verdict]:
        """The verdicts on a course; it is played when they are asked for first."""
        if course.name not in self.judged:
            reference = self.reference(course)
            site = self._site(course.site)
            try:
                played = Driver(site, course).play()
            finally:
                site.cluster.restore()
            self.judged[course.name] = list(Judge(played, reference).verdicts())
            # The file system with the run folders goes with the site.
            kept = self.home / "played" / course.name
            shutil.copytree(played.run.folder, kept, symlinks=True)
        return self.judged[course.name]

    def forget(self, course: Course) -> None:
        """Have a course played once more when its verdicts are asked for; its folder stays."""
        if self.judged.pop(course.name, None) is not None:
            kept = self.home / "played" / course.name
            tries = len(list(kept.parent.glob(f"{course.name}.*")))
            kept.rename(kept.with_name(f"{course.name}.{tries + 1}"))

    def reference(self, course: Course) -> Path:
        """The undisturbed run of a course: two local ranks, the same arithmetic, the same data.

        Stages that share a folder wait for each other: the first one makes the run.
        """
        key = "-".join([str(course.steps), *(row.name for row in course.data)])
        folder = (self.undisturbed or self.home / "undisturbed") / key
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / "made"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                made.write_text(str(_undisturbed_run(course, folder)))
        return Path(made.read_text())

    def _site(self, name: str) -> Site:
        if self.site is None or self.site.name != name:
            self.stack.close()
            self.site = None
            say(f"cluster {name}")
            self.site = self.stack.enter_context(open_site(name, self.home / name))
        return self.site

    def close(self) -> None:
        """Stop the cluster that is still open."""
        self.stack.close()
        self.site = None


def _undisturbed_run(course: Course, folder: Path) -> Path:
    """Run a course's training with nothing but its bad data; the run's folder."""
    say(f"undisturbed run of {course.steps} steps")
    config = course_config(folder, folder / "runs", steps=course.steps)
    bad = [row.inside.plan(row.name, 1) for row in course.data if row.inside]
    run = launch_faulty(config, *bad)
    assert run.wait(REFERENCE_S).state == "finished", run.status().why
    causes = [str(one.cause) for one in read_attempts(run.run_dir)]
    assert causes == ["finished"], f"misjudged although nothing happened: {causes}"
    first, *_ = samples_by_epoch(run.folder)
    assert set(first.values()) == {1}, "a sample came twice in the undisturbed run"
    return run.folder
