"""Quantization of any ``torch.nn.Module``: in place, eager, reversible."""
