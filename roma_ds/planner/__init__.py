"""What a run will need, from its config alone."""
