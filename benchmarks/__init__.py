"""Measurements, printed with their aims: ``python -m benchmarks [name ...]``.

They assert nothing: a clock that fails a build on a busy machine teaches nobody anything. Ratios
are of rounds that alternate in one run; seconds are this machine's.
"""
