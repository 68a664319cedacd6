"""The fault matrix and the storm: real training on a real Slurm, disturbed on purpose.

    python -m tests.faults matrix [--only NAME] [--json FILE]
    python -m tests.faults storm [--faults 20] [--seed 1]

``rows`` says what a row is and ``table`` lists them; ``drive`` plays the rows of a course one after
the other into one run; ``judge`` reads from the run folder what came of each.
"""
