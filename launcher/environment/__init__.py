"""The environment of the ranks: where every variable comes from, and which do harm.

rules       a table: variable, verdict, reason, source (pure)
lint        the rules over what reaches the ranks (pure)
provenance  what reaches the ranks, and from where (pure)
modules     environment modules in the batch script (pure)
show        for the terminal
"""
