"""Run benches one after the other: ``python -m benchmarks [name ...]``; ``--list`` names them."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Run the named benches, or all; each is a process of its own. Exits 1 when one failed."""
    known = benches()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(known))
    parser.add_argument("--list", action="store_true", help="say what each one measures")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.names) - set(known)):
        parser.error(f"no bench {', '.join(unknown)}; there are: {', '.join(known)}")
    if asked.list:
        for name, text in known.items():
            print(f"{name:<20} {text}")
        return
    failed = [name for name in asked.names or known if not run(name)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str) -> bool:
    """Run one bench with its defaults; whether it came to its end."""
    print(f"\n#### {name}", flush=True)
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode == 0


def benches() -> dict[str, str]:
    """Every module here that has a ``main()``, with the first sentence of its docstring."""
    found = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        tree = ast.parse(path.read_text())
        if any(_is_main(node) for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def _is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "main" and not node.args.args


if __name__ == "__main__":
    main()
