"""Sensors to batches: data roots in the nuScenes schema, frames, preprocessing."""
