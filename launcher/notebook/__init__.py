"""Runs in notebooks: cards, live displays, charts."""
