"""Watches runs: observe, judge, remember, notify."""
