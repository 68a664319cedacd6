"""What this cluster, or this machine, is like for a training: findings in under ten seconds.

finding         one answer: ok, warn, fail or unknown, with evidence and remedy
checks_*        judgements over facts (pure), and beside them the readers of what is judged
probe           looks at a folder; a process of its own, which may hang
run             all checks at once, each with a time limit
cli, show       the command, its table and its page
"""
