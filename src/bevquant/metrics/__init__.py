"""What a detector is worth: the nuScenes detection metrics, and which objects it lost."""
