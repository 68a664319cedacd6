"""What runs used and what it cost, by whom: hours of GPUs, money, and where they went.

``read`` reads run folders and asks sacct once, ``charges`` books (pure), ``prices`` knows the
price table (pure), ``bill`` sums up by group (pure), ``text`` prints. See docs/cost-and-audit.md.
"""

from __future__ import annotations
