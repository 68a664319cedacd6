"""Who did what to a run: a ledger that only grows, and that shows when anyone touched it later.

``ledger`` writes, ``chain`` proves (pure), ``read`` checks a run folder, ``published`` transcribes
what the ranks published, ``cli`` is ``python -m monitor audit``. See docs/cost-and-audit.md.
"""

from __future__ import annotations
