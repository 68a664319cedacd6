"""Small real programs that tests start as ranks."""
