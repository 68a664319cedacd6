"""Checks of a host, a cluster, nodes and ranks, each giving a ``Finding``; all bounded in time.

finding, render      the result of a check, running checks, showing results
assess               the command: all checks of this host and of its Slurm
folders, host, slurm   what it checks; folder_probe is a process of its own
schedulability, objections, account_limits, queue   whether and when Slurm starts a job
environment, environment_rules   variables of the ranks that do harm
preflight            the checks of a job's nodes before training, and its record
node_*               what runs on each node (standard library only), and node_query, which asks
rank_trial, trial_task   preflight ``full``: all ranks meet, reduce and multiply
assess_nodes         the preflight as a job of its own
"""
