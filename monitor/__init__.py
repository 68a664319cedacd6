"""Watch runs from outside: reads run folders and the scheduler, never writes into training."""
