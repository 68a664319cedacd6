"""Processes that find each other: rendezvous, process groups, hardware."""
