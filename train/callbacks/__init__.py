"""What happens around the training step: journal, trackers, automatic saves, anomaly checks."""
