"""What quantization costs, layer by layer, and where it goes wrong."""
