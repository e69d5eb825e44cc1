"""Stage 3: which layer gets which bits."""
