"""Looks at a job's nodes before training starts on them, and says which of them are unfit.

facts, measure, node   what one node tells of itself: a light task on it, without torch
gpu                    parsers of nvidia-smi, the kernel's log and /sys
ask                    a task on every node, in bounded time
peers, judge           findings: each node by itself and against its peers (pure)
ranks, trial           ``full``: all ranks meet, reduce and multiply; pairs where that fails
verdict                what is recorded of it, and in words
conduct                the whole of it, for one allocation

What this cluster, or this machine, is like for a training: findings in under ten seconds.

finding         one answer: ok, warn, fail or unknown, with evidence and remedy
checks_*        judgements over facts (pure), and beside them the readers of what is judged
probe           looks at a folder; a process of its own, which may hang
run             all checks at once, each with a time limit
cli, show       the command, its table and its page

Whether Slurm can ever run a request, and when: judged before anything is submitted.

facts, request   what the cluster has, what the job asks for
parse            Slurm's words into facts; asks it
nodes, limits    objections: why a request can never run, with the limit and who sets it
judge            impossible, waits, starts now (pure)
queue            how long it may wait, by ``sbatch --test-only`` and what is ahead
backfill         what fits before the next job or maintenance
permit           what a launch makes of it

The environment of the ranks: where every variable comes from, and which do harm.

rules       a table: variable, verdict, reason, source (pure)
lint        the rules over what reaches the ranks (pure)
provenance  what reaches the ranks, and from where (pure)
modules     environment modules in the batch script (pure)
show        for the terminal
"""

from __future__ import annotations
