"""What a launch will do, worked out and checked before anything is written."""
