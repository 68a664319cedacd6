"""A process that is started in a session of its own is seen to begin, or said not to have."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from submitrain.errors import RunError
from submitrain.launcher.submit import local


def begin(tmp_path: Path, code: str) -> None:
    """Run ``code``; it has started when it has made the file ``begun``."""
    local.start_detached(
        [sys.executable, "-c", code],
        log=tmp_path / "log",
        workdir=tmp_path,
        environ={"WORD": "hello"},
        started=(tmp_path / "begun").exists,
        what="the thing",
    )


def test_it_runs_in_its_folder_environment_and_session(tmp_path: Path) -> None:
    begin(
        tmp_path,
        "import os, pathlib; print(os.environ['WORD'], os.getsid(0), flush=True);"
        "pathlib.Path('begun').touch()",
    )
    deadline = time.monotonic() + 30
    while not (said := (tmp_path / "log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    word, session = said.split()
    assert word == "hello"
    assert int(session) != os.getsid(0)


def test_one_that_ends_before_it_began_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the thing did not start: no disk \(.*log\)"):
        begin(tmp_path, "raise SystemExit('no disk')")


def test_one_that_does_not_begin_in_time_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.2)
    with pytest.raises(RunError, match="the thing did not start in 0 s"):
        begin(tmp_path, "import time; time.sleep(60)")
