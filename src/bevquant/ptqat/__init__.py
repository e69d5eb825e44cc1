"""PTQAT: quantization-aware training of the layers that are worth it (arXiv 2508.10557)."""
