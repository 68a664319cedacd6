"""How training scales over nodes: measured from run folders, judged by arithmetic that is pure.

timing (events to seconds and tokens) and read (its only reading half) measure one run; estimate
(means with intervals), arithmetic (the formulas) and curve (all node counts together, and which one
to take) judge many.
"""
