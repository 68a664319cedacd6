"""Training functions of one's own: see docs/own-training-code.md."""
