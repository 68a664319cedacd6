"""Where the time of a run's allocations went, and what it cost: ``goodput`` and ``cost``.

``records`` reads, ``timeline`` cuts every allocation into stretches of one category (pure);
goodput and cost are two sums over them. See docs/goodput.md and docs/cost-and-audit.md.
"""
