"""Activations evened out between channels."""
