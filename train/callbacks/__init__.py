"""What happens beside the training step: journal, trackers, automatic saves, anomaly checks."""
