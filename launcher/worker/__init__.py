"""What one rank does around training: identity, signals, heartbeat, failure record. No torch."""
