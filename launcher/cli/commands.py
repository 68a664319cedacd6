"""What each command of the command line does: the printing half of ``launcher.cli.main``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from rich.console import Console
from rich.text import Text

from submitrain.errors import UserError
from submitrain.launcher.run import Run
from submitrain.monitor.status import console, show_run, show_runs
from submitrain.run_folder import RunDir, list_runs
from submitrain.status import RunState, RunStatus, read_statuses

if TYPE_CHECKING:
    from submitrain.launcher.plan.prepare import Prepared


_LOG_POLL_S = 0.5


def run(options: argparse.Namespace) -> int:
    """Start a run, and stay with it where that is asked for or usual."""
    from submitrain.launcher.plan.prepare import prepare
    from submitrain.launcher.submit.start import start

    log_to_stderr()
    prepared = prepare(
        options.config,
        overrides=_overrides(options),
        cluster=options.cluster,
        plan_only=options.dry_run,
    )
    if options.dry_run and (options.force or options.max_wait is not None):
        raise UserError("--dry-run starts nothing: leave --force and --max-wait out")
    if options.dry_run:
        return _show_plan(prepared, options.json)
    for warning in prepared.plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    _permit(prepared, options)
    started = Run(start(prepared).root)
    if not options.json:
        print(f"{started.run_id} on {prepared.cluster.name} ({prepared.cluster.reason})")
    return _stay(started, prepared.cluster.name, options)


def _permit(prepared: Prepared, options: argparse.Namespace) -> None:
    """Refuse what Slurm would never start; a person at a terminal may insist."""
    from submitrain.launcher.checks.schedulability import max_wait_s, permit

    def confirm(problem: str) -> bool:
        print(problem, file=sys.stderr)
        try:
            answer = input("submit it all the same? [y/N] ")
        except EOFError:
            return False
        return answer.strip().lower() in ("y", "yes")

    at_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not options.json
    longest_s = max_wait_s(options.max_wait)
    if longest_s is not None and prepared.cluster.name == "local":
        raise UserError("--max-wait: a run on this machine waits in no queue; leave it out")
    permit(
        prepared.schedulability() if longest_s is not None or not options.force else None,
        force=options.force,
        max_wait_s=longest_s,
        confirm=confirm if at_terminal else None,
    )


def plan(options: argparse.Namespace) -> int:
    """Show the plan, or what becomes of every key."""
    from submitrain.launcher.plan.prepare import prepare

    log_to_stderr()
    if options.keys and options.env:
        raise UserError("--keys and --env: expected one of them, got both; ask twice")
    if options.keys:
        return _show_keys(options)
    prepared = prepare(
        options.config, overrides=_overrides(options), cluster=options.cluster, plan_only=True
    )
    if options.env:
        return _show_environment(prepared, options.json)
    return _show_plan(prepared, options.json)


def _show_environment(prepared: Prepared, as_json: bool) -> int:
    """Every variable of the ranks, and from where; then what is wrong with them."""
    from submitrain.launcher.checks.environment import listing

    variables = prepared.environment
    if as_json:
        _print_json([one.as_json() for one in variables])
    else:
        print(listing(variables, prepared.loaded.config))
        for warning in prepared.plan.warnings:
            print(f"warning: {warning}")
    return 0


def _show_keys(options: argparse.Namespace) -> int:
    """An account of every key; 2 where one of them is refused."""
    from submitrain.launcher.plan.keys import KeyStatus, account, account_text

    told = account(options.config, options.overrides)
    if options.json:
        _print_json([one.as_json() for one in told])
    else:
        print(account_text(told))
    return UserError.exit_code if any(one.status is KeyStatus.REFUSED for one in told) else 0


def _overrides(options: argparse.Namespace) -> list[str]:
    after = [] if options.after is None else [f"after={options.after}"]
    return [*options.overrides, *after]


def list_all(options: argparse.Namespace) -> int:
    """One line for every run, the newest first."""
    folders = list_runs(Path(options.runs_dir).expanduser())
    show_runs(
        read_statuses(reversed(folders)), as_json=options.json, runs_dir=Path(options.runs_dir)
    )
    return 0


def status(options: argparse.Namespace) -> int:
    """Everything about one run."""
    show_run(_open(options).status(), as_json=options.json)
    return 0


def logs(options: argparse.Namespace) -> int:
    """Print a rank's log; with ``-f`` go on until the run has ended."""
    opened = _open(options)
    # Sizes first: a line written meanwhile may show twice, but none is lost.
    sizes = {path: path.stat().st_size for path in opened.log_files(options.rank, options.attempt)}
    text = opened.logs(rank=options.rank, attempt=options.attempt, tail=options.tail)
    sys.stdout.write(text)
    if not options.follow:
        return 0
    while True:
        ended = opened.status().state.ended
        for path in _log_files(opened, options):
            sizes[path] = _print_from(path, sizes.get(path, 0))
        if ended:
            return 0
        time.sleep(_LOG_POLL_S)


def cancel(options: argparse.Namespace) -> int:
    """Ask a run to save and stop."""
    opened = _open(options)
    found = opened.cancel()
    print(f"{opened.run_id}: asked to save and stop ({found.state}: {found.why})")
    return 0


def resume(options: argparse.Namespace) -> int:
    """Submit a run again."""
    log_to_stderr()
    opened = _open(options).resume(force=options.force, **_resources(options.overrides))
    cluster = opened.status().cluster
    if not options.json:
        print(f"{opened.run_id} goes on, on {cluster}")
    return _stay(opened, cluster, options)


def _resources(overrides: Sequence[str]) -> dict[str, Any]:
    """Keys of the slurm section from ``slurm.nodes=4``; nothing else can change at a resume."""
    found: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        section, _, name = key.partition(".")
        if not equals or section != "slurm" or not name:
            raise UserError(
                f"resume: expected slurm.KEY=VALUE, got {text}; everything else stays as it was "
                "launched: launch a new run for that"
            )
        found[name] = value
    return found


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema, or the reference for people."""
    from submitrain.config.schema import editor_schema

    if options.markdown:
        from submitrain.launcher.cli.explain import reference

        sys.stdout.write(reference())
        return 0

    _print_json(editor_schema())
    return 0


def _stay(opened: Run, cluster: str, options: argparse.Namespace) -> int:
    """Follow the run to its end, or say how to; the exit code tells how it ended."""
    if options.detach or (cluster == "slurm" and not options.wait):
        if options.json:
            _print_json(opened.status().as_json())
        else:
            _print_how_to_follow(opened)
        return 0
    if options.json:
        found = opened.wait()
        _print_json(found.as_json())
        return exit_code(found)
    return _watch(opened)


def _watch(opened: Run) -> int:
    from submitrain.launcher.cli.progress import follow_on, show_summary
    from submitrain.launcher.summary import failure_line

    screen = console()
    while True:
        try:
            found = follow_on(opened, screen)
            break
        except KeyboardInterrupt:
            if not _goes_on_watching(opened, screen):
                return 0
    show_summary(opened, found, screen)
    if found.state is RunState.FAILED:
        line = failure_line(opened.folder) or found.why
        print(f"error: {line}", file=sys.stderr)
    return exit_code(found)


def _goes_on_watching(opened: Run, screen: Console) -> bool:
    """After Ctrl-C: ask once what is meant; without a terminal, or at a second one, detach."""
    choices = "[d]etach (the run goes on), [s]top (save, then end), [k]eep watching"
    try:
        answer = screen.input(Text(f"\n{choices}: ")) if sys.stdin.isatty() else "d"
    except (KeyboardInterrupt, EOFError):
        answer = "d"
    letter = answer.strip().lower()[:1]
    if letter == "s":
        opened.cancel()
        screen.print("saves and stops ...")
        return True
    if letter == "k":
        return True
    _print_how_to_follow(opened)
    return False


def exit_code(found: RunStatus) -> int:
    """0 finished, 2 when the ranks blame the user's input, else 1."""
    if found.state is RunState.FINISHED:
        return 0
    return UserError.exit_code if found.user_error else 1


def _print_how_to_follow(opened: Run) -> None:
    print(f"  folder   {opened.folder}")
    for command in ("status", "logs", "cancel"):
        option = " -f" if command == "logs" else ""
        print(f"  {command:8} python -m launcher {command} {_name(opened)}{option}")


def _name(opened: Run) -> str:
    """What finds the run again from here: its id where the default folder holds it."""
    in_default = opened.folder.parent == Path("runs").resolve()
    return opened.run_id if in_default else str(opened.folder)


def _open(options: argparse.Namespace) -> Run:
    return Run.open(options.run, runs_dir=options.runs_dir)


def _show_plan(prepared: Prepared, as_json: bool) -> int:
    """The plan, and for Slurm the batch script; in its paths only the start's time is open."""
    from submitrain.launcher.checks.environment import in_short
    from submitrain.launcher.checks.schedulability import Outcome

    plan, script, srun, schedulability = prepared.plan, None, None, prepared.schedulability()
    if prepared.cluster.name == "slurm":
        from submitrain.launcher.plan.plan import sbatch_text
        from submitrain.launcher.plan.step_text import srun_text

        run_dir = RunDir(prepared.runs_dir / f"{plan.name}-<start>-{plan.digest[:8]}")
        script = sbatch_text(plan, run_dir.submitit)
        srun = srun_text(plan, prepared.loaded.config, run_dir)
    if as_json:
        judged = None if schedulability is None else schedulability.as_json()
        shown = {"cluster_reason": prepared.cluster.reason, "verdict": judged}
        _print_json({**plan.as_json(), **shown, "script": script, "srun": srun})
    else:
        print(plan.render())
        print(f"{'environment':<13}{in_short(prepared.environment)}")
        if schedulability is not None:
            labels = ["scheduling", *[""] * 99]
            for label, line in zip(labels, schedulability.lines(), strict=False):
                print(f"{label:<13}{line}")
        if script is not None:
            print(f"\nbatch script, as submitit writes it:\n\n{script.rstrip()}")
            print(f"\nthe ranks' step, as the supervisor starts it:\n\n{srun}")
    if schedulability is not None and schedulability.outcome is Outcome.IMPOSSIBLE:
        print("error: Slurm would never start this job (see scheduling)", file=sys.stderr)
        return 2
    return 0


def _log_files(opened: Run, options: argparse.Namespace) -> Sequence[Path]:
    try:
        return opened.log_files(options.rank, options.attempt)
    except UserError:
        # A new attempt has begun and this rank has not written yet.
        return []


def _print_from(path: Path, start: int) -> int:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()
    return start + len(data)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def log_to_stderr() -> None:
    """Warnings of the library go to standard error: standard output belongs to the command."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
