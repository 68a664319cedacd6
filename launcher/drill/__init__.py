"""The drill: a short run of the user's own configuration, undisturbed and with injected faults."""
