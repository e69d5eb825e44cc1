"""Stage 2, and beyond: scales and roundings chosen for the output of each layer."""
