"""Plain PyTorch networks; nothing in here knows about quantization."""
