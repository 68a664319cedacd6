"""What each command of the command line does: the printing half of ``launcher.cli.main``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
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
    from submitrain.launcher.submit.start import start

    prepared = _prepare(options, plan_only=options.dry_run)
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


def _prepare(options: argparse.Namespace, *, plan_only: bool) -> Prepared:
    from submitrain.launcher.plan.prepare import prepare

    log_to_stderr()
    after = [] if options.after is None else [f"after={options.after}"]
    overrides = [*options.overrides, *after]
    return prepare(
        options.config, overrides=overrides, cluster=options.cluster, plan_only=plan_only
    )


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
    """Show the plan, or what becomes of every key (2 where one is refused), or the environment."""
    if options.keys and options.env:
        raise UserError("--keys and --env: expected one of them, got both; ask twice")
    if options.keys:
        from submitrain.launcher.plan.keys import KeyStatus, account, account_text

        log_to_stderr()
        found = account(options.config, options.overrides)
        if options.json:
            _print_json([one.as_json() for one in found])
        else:
            print(account_text(found))
        refused = any(one.status is KeyStatus.REFUSED for one in found)
        return UserError.exit_code if refused else 0
    prepared = _prepare(options, plan_only=True)
    if not options.env:
        return _show_plan(prepared, options.json)
    from submitrain.launcher.checks.environment import listing

    variables = prepared.environment
    if options.json:
        _print_json([one.as_json() for one in variables])
        return 0
    print(listing(variables, prepared.loaded.config))
    for warning in prepared.plan.warnings:
        print(f"warning: {warning}")
    return 0


def _show_plan(prepared: Prepared, as_json: bool) -> int:
    """The plan, and for Slurm the batch script; in its paths only the start's time is open."""
    from submitrain.launcher.checks.environment import in_short
    from submitrain.launcher.checks.schedulability import Outcome
    from submitrain.launcher.plan.prepare import srun_text
    from submitrain.launcher.plan.sbatch import script_text

    plan, script, srun, schedulability = prepared.plan, None, None, prepared.schedulability()
    if prepared.cluster.name == "slurm":
        run_dir = RunDir(prepared.runs_dir / f"{plan.name}-<start>-{plan.digest[:8]}")
        script = script_text(plan.sbatch, run_dir.submitit)
        srun = srun_text(plan, prepared.loaded.config, run_dir)
    if as_json:
        judged = None if schedulability is None else schedulability.as_json()
        shown = {"cluster_reason": prepared.cluster.reason, "verdict": judged}
        _print_json({**plan.as_json(), **shown, "script": script, "srun": srun})
    else:
        print(plan.render())
        print(f"{'environment':<13}{in_short(prepared.environment)}")
        for number, line in enumerate(schedulability.lines() if schedulability else ()):
            print(f"{'' if number else 'scheduling':<13}{line}")
        if script is not None:
            print(f"\nbatch script, as submitit writes it:\n\n{script.rstrip()}")
            print(f"\nthe ranks' step, as the supervisor starts it:\n\n{srun}")
    if schedulability is not None and schedulability.outcome is Outcome.IMPOSSIBLE:
        print("error: Slurm would never start this job (see scheduling)", file=sys.stderr)
        return UserError.exit_code
    return 0


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
        with suppress(UserError):  # a new attempt has begun and this rank has not written yet
            for path in opened.log_files(options.rank, options.attempt):
                with path.open("rb") as file:
                    file.seek(sizes.get(path, 0))
                    data = file.read()
                sizes[path] = sizes.get(path, 0) + len(data)
                sys.stdout.write(data.decode(errors="replace"))
                sys.stdout.flush()
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
    resources: dict[str, Any] = {}
    for text in options.overrides:
        key, equals, value = text.partition("=")
        section, _, name = key.partition(".")
        if not equals or section != "slurm" or not name:
            raise UserError(
                f"resume: expected slurm.KEY=VALUE, got {text}; everything else stays as it was "
                "launched: launch a new run for that"
            )
        resources[name] = value
    opened = _open(options).resume(force=options.force, **resources)
    cluster = opened.status().cluster
    if not options.json:
        print(f"{opened.run_id} resumed on {cluster}")
    return _stay(opened, cluster, options)


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema, or the reference for people."""
    from submitrain.config.schema import editor_schema

    if options.markdown:
        from submitrain.launcher.cli.explain import reference

        sys.stdout.write(reference())
    else:
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
            # Ask once what is meant; without a terminal, or at a second one, detach.
            choices = "[d]etach (the run continues), [s]top (save, then end), [k]eep watching"
            try:
                answer = screen.input(Text(f"\n{choices}: ")) if sys.stdin.isatty() else "d"
            except (KeyboardInterrupt, EOFError):
                answer = "d"
            letter = answer.strip().lower()[:1]
            if letter == "s":
                opened.cancel()
                screen.print("saves and stops ...")
            elif letter != "k":
                _print_how_to_follow(opened)
                return 0
    show_summary(opened, found, screen)
    if found.state is RunState.FAILED:
        line = failure_line(opened.folder) or found.why
        print(f"error: {line}", file=sys.stderr)
    return exit_code(found)


def exit_code(found: RunStatus) -> int:
    """0 finished, 2 when the ranks blame the user's input, else 1."""
    if found.state is RunState.FINISHED:
        return 0
    return UserError.exit_code if found.user_error else 1


def _print_how_to_follow(opened: Run) -> None:
    """Commands with what finds the run again from here: its id where the usual folder holds it."""
    usual = opened.folder.parent == Path("runs").resolve()
    print(f"  folder   {opened.folder}")
    for command in ("status", "logs", "cancel"):
        option = " -f" if command == "logs" else ""
        name = opened.run_id if usual else opened.folder
        print(f"  {command:8} python -m launcher {command} {name}{option}")


def _open(options: argparse.Namespace) -> Run:
    return Run.open(options.run, runs_dir=options.runs_dir)


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
