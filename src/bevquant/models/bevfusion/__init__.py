"""BEVFusion: one file per main module, parameter names as in mmdetection3d."""

from bevquant.models.bevfusion.config import FULL, SMALL, BEVFusionConfig
from bevquant.models.bevfusion.encoder import NetworkInput
from bevquant.models.bevfusion.model import BEVFusion
from bevquant.models.bevfusion.transfusion import HeadOutput

__all__ = ["FULL", "SMALL", "BEVFusion", "BEVFusionConfig", "HeadOutput", "NetworkInput"]
