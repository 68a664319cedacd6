"""Examples in the help of each command. Light: every start of the command line imports it."""

from __future__ import annotations

EXAMPLES_OF: dict[str, tuple[tuple[str, str], ...]] = {
    "run": (
        ("configs/quickstart.yaml", "train on this machine and watch it"),
        ("cfg.yaml slurm.nodes=4 optimizer.lr=1e-4", "change keys for this run"),
        ("cfg.yaml --cluster slurm --wait", "submit, and stay until it has ended"),
        ("cfg.yaml --detach --json", "start it and print where it is, for scripts"),
        ("cfg.yaml --dry-run", "the plan; starts nothing"),
    ),
    "plan": (
        ("plan cfg.yaml", "batch arithmetic, memory, the batch script"),
        ("plan cfg.yaml slurm.nodes=8 --cluster slurm", "of a cluster that is elsewhere"),
        ("plan cfg.yaml --json", "the same for scripts"),
    ),
    "assess": (
        ("assess", "what is here, what would go wrong, and what to do"),
        ("assess --config cfg.yaml --html assess.html", "for a configuration, as a page"),
        ("assess --nodes 4 --config cfg.yaml", "four compute nodes, by a job; docs/preflight.md"),
    ),
    "list": (
        ("list", "runs of ./runs, the newest first"),
        ("list --runs-dir /shared/runs --json", "of another folder, for scripts"),
    ),
    "status": (
        ("status latest", "state, step, loss, and where the time went"),
        ("status quickstart-2026 --json", "by the beginning of its name"),
    ),
    "logs": (
        ("logs latest -f", "follow rank 0"),
        ("logs latest --rank 3 --attempt 1 --tail 50", "the end of an earlier attempt"),
    ),
    "cancel": (("cancel latest", "it saves, stops, and stays stopped"),),
    "resume": (
        ("resume latest", "from the newest verified checkpoint"),
        ("resume latest slurm.nodes=2 slurm.time=4h", "with other resources, same global batch"),
    ),
    "drill": (
        ("drill cfg.yaml --shrink", "every fault that is possible here, on a small model"),
        ("drill cfg.yaml --faults kill,hang --steps 40", "some faults, more steps"),
        ("drill cfg.yaml --list", "what there is"),
    ),
    "sweep": (
        ("sweep cfg.yaml --nodes 1,2,4 --price 2.10", "how many nodes are worth their price"),
        ("sweep cfg.yaml --grid optimizer.lr=1e-4,3e-4 --steps 100", "try values"),
        ("sweep status latest", "how its runs are doing"),
        ("sweep report latest", "what was measured"),
    ),
    "init": (
        ("init", "writes cfg.yaml for Slurm, or for this machine"),
        ("init -o big.yaml --cluster slurm", "another file; an error where Slurm does not answer"),
        ("init -o -", "to standard output"),
    ),
    "explain": (
        ("explain slurm.time", "doc, allowed values, default, other spellings"),
        ("explain resilience", "the keys of a section"),
        ("explain", "all sections"),
    ),
    "schema": (
        ("schema > schema.json", "for editors"),
        ("schema --markdown", "the reference of all keys"),
    ),
    "completion": (
        ("completion bash >> ~/.bashrc", "for every new shell"),
        ("completion zsh > ~/.submitrain.zsh", "source it after compinit"),
        ("completion fish > ~/.config/fish/conf.d/submitrain.fish", ""),
    ),
}
"""Command to (words after `python -m launcher`, what it does)."""
