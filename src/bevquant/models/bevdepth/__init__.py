"""BEVDepth4D (Li et al., AAAI 2023): camera-only, supervised depth, two key frames in time."""

from bevquant.models.bevdepth.config import FULL, SMALL, BEVDepthConfig
from bevquant.models.bevdepth.model import BEVDepth, BEVDepthInput, BEVDepthOutput

__all__ = ["FULL", "SMALL", "BEVDepth", "BEVDepthConfig", "BEVDepthInput", "BEVDepthOutput"]
