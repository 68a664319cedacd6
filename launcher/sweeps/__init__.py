"""Sweeps: many runs of one configuration, over node counts and over any keys, judged together.

request (what was asked for), grid (its combinations) and settings (how a run is shaped for timing)
are pure; plan puts them together and checks every point before anything starts; record is what a
sweep's folder keeps; conduct starts what is missing; report judges with
``launcher.sweeps.scaling``; text
and page tell; handle is what Python gets.
"""

from __future__ import annotations
