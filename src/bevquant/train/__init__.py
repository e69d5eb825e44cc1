"""Float training of the networks."""
