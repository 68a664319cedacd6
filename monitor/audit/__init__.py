"""Who did what to a run: a ledger that only grows, and that shows when anyone touched it later.

See docs/cost-and-audit.md.
"""
