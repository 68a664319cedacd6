"""Training functions of the user's own: what they are given, and who calls them.

context   RunContext, the public part: ``from train import RunContext``; imports no torch
order     which samples a step consumes, a pure function of seed, step and ranks
peers     process group, agreement over ranks, waiting for each other
saving    publishing what the function wrote as a verified checkpoint
main      what ``launcher.worker.rank`` calls: prepares, calls the function, records its end
trainer   the same contract for a Hugging Face ``Trainer``
"""

from __future__ import annotations
