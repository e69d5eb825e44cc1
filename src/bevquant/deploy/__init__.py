"""From a quantized network to a file, and from that file to an engine."""
