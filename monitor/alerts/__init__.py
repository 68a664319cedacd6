"""From findings to messages that arrive: state machine, outbox, channels."""

from __future__ import annotations
