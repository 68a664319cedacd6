"""Examples in the help of each command. Light: every start of the command line imports it."""

from __future__ import annotations

EXAMPLES_OF: dict[str, tuple[tuple[str, str], ...]] = {
    "watch": (
        ("watch latest", "one run, until it has ended"),
        ("watch --all --config alerts.yaml", "every run of ./runs, for ever"),
        ("watch --all --once --json", "one look, for cron and scripts"),
    ),
    "test-alert": (
        ("test-alert latest", "the channels of a run's own configuration"),
        ("test-alert --config alerts.yaml", "those of a file for all runs"),
    ),
    "status": (
        ("status latest", "everything about one run"),
        ("status --all --json", "all runs, for scripts"),
    ),
    "top": (
        ("top", "all runs of ./runs, live; Enter shows the logs of one, q leaves"),
        ("top --interval 30", "fewer looks"),
    ),
    "serve": (
        ("serve --port 9847", "metrics of all runs for Prometheus"),
        ("serve latest --bind 0.0.0.0", "of one run, on every address"),
    ),
    "diagnose": (
        ("diagnose latest", "why a run of ours ended"),
        ("diagnose latest --attempt 2", "an earlier attempt"),
        ("diagnose slurm-4711.out slurm-4711.err", "any trainer's logs"),
    ),
    "report": (
        ("report latest", "reports/report.html, and a summary"),
        ("report latest --html /tmp/run.html --json", "elsewhere, and all numbers"),
    ),
    "cost": (
        ("cost latest", "hours and waste of one run"),
        ("cost --all --by user --prices prices.yaml", "a bill"),
        ("cost --all --by month --since 2026-01-01 --format csv", "for a spreadsheet"),
    ),
    "audit": (
        ("audit show latest", "who did what"),
        ("audit verify --all", "was any record changed"),
        ("audit export latest", "the trail, for elsewhere"),
    ),
}
"""Command to (words after `python -m monitor`, what it does)."""
