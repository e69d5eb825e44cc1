"""A generated driving world, written to disk in the nuScenes schema."""

from bevquant.data.world.generate import generate
from bevquant.data.world.settings import VERSION, WorldSettings

__all__ = ["VERSION", "WorldSettings", "generate"]
