"""Whether Slurm can ever run a request, and when: judged before anything is submitted.

facts, request   what the cluster has, what the job asks for
parse            Slurm's words into facts; asks it
nodes, limits    objections: why a request can never run, with the limit and who sets it
judge            impossible, waits, starts now (pure)
queue            how long it may wait, by ``sbatch --test-only`` and what is ahead
backfill         what fits before the next job or maintenance
permit           what a launch makes of it
"""
