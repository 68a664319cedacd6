"""The run folder: every path in it is named here and nowhere else. Imports no torch.

<runs>/<name>-<utc>-<hash8>/
  config.yaml  record.json  submissions.jsonl  attempts.jsonl  skips.jsonl  summary.json
  submissions/001/            made with mkdir: whoever makes it may submit the run
  attempts/003/               made with mkdir: whoever makes it owns attempt 3
    rendezvous.json  stop.json  stacks/
  events/rank00000.jsonl
  logs/attempt-003/rank00000.{out,err}
  checkpoints/step-00000500/{...,manifest.json}   + latest
  export/                     the trained model, for from_pretrained
  submitit/  code/  reports/  audit/
  successors/<run>.json       runs that wait for this one
  faults.json  faults/<id>/   planned faults and those that struck; drills and tests only
  alerts.jsonl  monitor/      written by the monitor
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.errors import FencedError, UserError

RUN_DIR_VARIABLE = "SUBMITRAIN_RUN_DIR"
ATTEMPT_VARIABLE = "SUBMITRAIN_ATTEMPT"


class _Inside:
    """A path at a fixed place in the run folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run_dir: RunDir, owner: type[RunDir]) -> Path:
        return run_dir.root / self._name


@dataclass(frozen=True)
class RunDir:
    """Paths of one run; holds nothing but its root folder."""

    root: Path

    config = _Inside("config.yaml")
    """The resolved configuration; environment placeholders stay placeholders."""
    record = _Inside("record.json")
    """Who started it, when, from which commit, with which versions."""
    successors = _Inside("successors")
    """One file for every run that waits for this one (``after``), made by its client."""
    submissions = _Inside("submissions.jsonl")
    """One line for every job submitted for this run (launch and each resume)."""
    submission_claims = _Inside("submissions")
    """``001/``, ...: made with mkdir; whoever makes one may submit (launch and each resume)."""
    attempts = _Inside("attempts.jsonl")
    """One line at the start and one at the end of every attempt; the supervisor writes it."""
    skips = _Inside("skips.jsonl")
    """One line for every rollback: the data skipped since; the supervisor writes it."""
    summary = _Inside("summary.json")
    """Final status of the run; written by the supervisor when it ends for good."""
    cancel_request = _Inside("cancel.json")
    """Written by ``cancel`` before the scheduler is asked, so nobody brings the run back."""
    submitit = _Inside("submitit")
    """submitit's folder: pickles, the generated sbatch text, the job's own output."""
    code = _Inside("code")
    """Snapshot of the user's code."""
    checkpoints = _Inside("checkpoints")
    """Checkpoints, or a link to where ``checkpoint.checkpoint_dir`` keeps this run's."""
    export = _Inside("export")
    """The trained model in Hugging Face form."""
    audit = _Inside("audit")
    """Who did what: one ledger for each writer (``monitor.audit``)."""
    reports = _Inside("reports")
    """Reports written at the end of a run."""
    faults = _Inside("faults.json")
    """Faults planned for this run by a drill or a test (``train.faults``); usually absent."""
    fired = _Inside("faults")
    """One folder for every fault that has struck."""
    alerts = _Inside("alerts.jsonl")
    """What the monitor raised and resolved, one line each."""
    monitor = _Inside("monitor")
    """The monitor's own folder: state, outbox, history."""
    events_dir = _Inside("events")
    """One event file for every rank."""

    @property
    def run_id(self) -> str:
        """The folder's name, unique among runs."""
        return self.root.name

    @property
    def data_cache(self) -> Path:
        """Tokenized data, shared by all runs beside this one."""
        return self.root.parent / ".cache"

    def events(self, rank: int) -> Path:
        """Event file of one rank; that rank is its only writer."""
        return self.events_dir / f"rank{rank:05d}.jsonl"

    def logs(self, attempt: int) -> Path:
        """Folder with the ranks' standard output and error of one attempt."""
        return self.root / "logs" / f"attempt-{attempt:03d}"

    def log(self, attempt: int, rank: int, stream: str) -> Path:
        """Log file of one rank; ``stream`` is ``out`` or ``err``."""
        return self.logs(attempt) / f"rank{rank:05d}.{stream}"

    def attempt_dir(self, attempt: int) -> Path:
        """Scratch of one attempt: rendezvous, stop request, stack dumps."""
        return self.root / "attempts" / f"{attempt:03d}"

    def stacks(self, attempt: int, rank: int) -> Path:
        """Where a rank of an attempt dumps the stacks of its threads."""
        return self.attempt_dir(attempt) / "stacks" / f"rank{rank:05d}.txt"

    def preflight(self, attempt: int) -> Path:
        """What the preflight before an attempt found, if there was one."""
        return self.attempt_dir(attempt) / "preflight.json"

    def rendezvous(self, attempt: int) -> Path:
        """Where rank 0 of an attempt publishes the address of its store."""
        return self.attempt_dir(attempt) / "rendezvous.json"

    def stop_request(self, attempt: int) -> Path:
        """Written by the supervisor to ask the ranks to save and stop at the next step."""
        return self.attempt_dir(attempt) / "stop.json"

    def newest_attempt(self) -> int:
        """Highest attempt number that anyone has claimed, 0 before the first."""
        try:
            names = [entry.name for entry in (self.root / "attempts").iterdir()]
        except FileNotFoundError:
            return 0
        return max((int(name) for name in names if name.isdigit()), default=0)

    def claim_attempt(self, *, after: int | None = None) -> int:
        """Claim the next attempt number; two claimants never get the same one (mkdir is atomic).

        ``after`` is the newest attempt that the claimant knows: only the one behind it will do.

        Raises:
            FencedError: someone else has claimed an attempt behind ``after``.
        """
        (self.root / "attempts").mkdir(exist_ok=True)
        self.events_dir.mkdir(exist_ok=True)
        while True:
            attempt = (self.newest_attempt() if after is None else after) + 1
            # Before the claim, so that a full disk here leaves no claim without its folders.
            self.logs(attempt).mkdir(parents=True, exist_ok=True)
            try:
                self.attempt_dir(attempt).mkdir()
            except FileExistsError as error:
                if after is None:
                    continue
                raise FencedError(
                    f"attempt {attempt} belongs to another supervisor, which goes on with "
                    f"{self.run_id}; this one ends"
                ) from error
            return attempt


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file, or anything else in it."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json_atomically(path: Path, value: Any) -> None:
    """Write ``value`` as JSON so that a reader sees the old file or the whole new one."""
    write_text_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` durably: temporary file, fsync, rename, fsync of the folder."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Make renames in ``folder`` durable (fsync(2): the directory needs its own fsync)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LATEST = "latest"


def is_run(folder: Path) -> bool:
    """Whether a launch completed this folder."""
    return (folder / "record.json").is_file() and not folder.name.startswith(".")


def list_runs(runs_dir: Path) -> list[Path]:
    """Run folders, oldest launch first.

    Raises:
        OSError: the folder is there and cannot be read now.
    """
    if not runs_dir.is_dir():
        return []
    return sorted((entry.resolve() for entry in runs_dir.iterdir() if is_run(entry)), key=_age)


def find_run(name: str, runs_dir: Path) -> Path:
    """The run of that folder, name, unique beginning of a name, or the ``latest`` one.

    Raises:
        UserError: there is none, or more than one.
    """
    folder = Path(name).expanduser()
    if is_run(folder):
        return folder.resolve()
    runs = list_runs(runs_dir)
    if name == LATEST and runs:
        return runs[-1]
    found = [run for run in runs if run.name == name] or [
        run for run in runs if run.name.startswith(name)
    ]
    if len(found) != 1:
        raise UserError(_not_one(name, runs_dir.absolute(), runs, found))
    return found[0]


def _not_one(name: str, where: Path, runs: list[Path], found: list[Path]) -> str:
    if found:
        names = ", ".join(run.name for run in found[:5])
        return f"run: expected the beginning of one run's name, got {name}, which fits {names}"
    if not runs:
        return f"run: no run {name}: there is none in {where}; name another folder by --runs-dir"
    recent = ", ".join(run.name for run in runs[-3:])
    return f"run: no run {name} in {where}; the latest there are {recent}"


def _age(folder: Path) -> tuple[str, str]:
    """Start of the launch as its name has it (``yyyymmddThhmmss``), then the name."""
    parts = folder.name.rsplit("-", 2)
    return (parts[1] if len(parts) == 3 else "", folder.name)


def select_runs(names: Sequence[str], *, everything: bool, runs_dir: Path) -> list[Path]:
    """The named runs, or every one of the runs folder.

    Raises:
        UserError: both or neither were asked for, or there is no such run.
    """
    if bool(names) == everything:
        raise UserError("run: expected runs, or --all for every run of the runs folder")
    if everything:
        return [folder.resolve() for folder in list_runs(runs_dir)]
    # A run that is named twice is charged once.
    return list(dict.fromkeys(find_run(name, runs_dir) for name in names))
