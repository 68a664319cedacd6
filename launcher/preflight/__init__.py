"""Looks at a job's nodes before training starts on them, and says which of them are unfit.

facts, measure, node   what one node tells of itself: a light task on it, without torch
gpu                    parsers of nvidia-smi, the kernel's log and /sys
ask                    a task on every node, in bounded time
peers, judge           findings: each node by itself and against its peers (pure)
ranks, trial           ``full``: all ranks meet, reduce and multiply; pairs where that fails
verdict                what is recorded of it, and in words
conduct                the whole of it, for one allocation
"""
