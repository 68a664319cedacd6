"""From findings to messages that arrive: state machine, outbox, channels."""
