"""``slurm.modules``: environment modules, loaded in the batch script before anything else. Pure.

Sources: module(1) of Environment Modules, the user guide of Lmod ("LOADEDMODULES").
"""

from __future__ import annotations

from collections.abc import Sequence

_FIND = (
    "command -v module >/dev/null 2>&1 || for f in "
    '"$LMOD_PKG/init/bash" "$MODULESHOME/init/bash" '
    "/etc/profile.d/lmod.sh /etc/profile.d/modules.sh /usr/share/modules/init/bash; "
    'do [ -r "$f" ] && . "$f" && break; done'
)
"""``module`` is a function of the shell, which a batch script need not have (``which`` fails)."""


def module_lines(modules: Sequence[str]) -> list[str]:
    """Lines of the batch script; it ends where a module is not there after loading it.

    ``LOADEDMODULES`` is asked, since older versions of ``module`` exit with 0 whatever happens.
    """
    if not modules:
        return []
    names = " ".join(modules)
    check = (
        f'for m in {names}; do case ":${{LOADEDMODULES:-}}:" in *":$m:"*|*":$m/"*) ;; '
        '*) echo "slurm.modules: $m is not loaded on $(hostname); see: module avail $m" >&2; '
        "exit 1;; esac; done"
    )
    return [_FIND, f"module load {names}", check]
