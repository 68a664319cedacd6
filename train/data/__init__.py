"""Training data: sources -> samples -> encode -> store -> packing -> batch -> loader."""
