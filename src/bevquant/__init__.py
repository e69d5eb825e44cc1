"""Quantize camera-LiDAR perception networks, and measure what they still see."""
