"""PETR (Liu et al., ECCV 2022): camera-only, positions in 3-D instead of a BEV map."""

from bevquant.models.petr.config import FULL, SMALL, PETRConfig
from bevquant.models.petr.head import PETROutput
from bevquant.models.petr.model import PETR, PETRInput

__all__ = ["FULL", "PETR", "SMALL", "PETRConfig", "PETRInput", "PETROutput"]
