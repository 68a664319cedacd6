"""Imported once by the server that test ranks are forked from: what would take seconds in each."""

import train.checkpoint.checkpointer
import train.export  # noqa: F401
