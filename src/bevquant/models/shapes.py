"""Any network of ours without numbers, with the input of one frame."""

from collections.abc import Callable
from typing import Any

import torch

from bevquant.models.bevfusion import BEVFusion
from bevquant.models.bevfusion.shapes import sensor_shapes
from bevquant.models.camera import CameraDetector
from bevquant.models.dense import DenseInput, DenseNetwork

Networks = BEVFusion | CameraDetector | DenseNetwork


def shapes_only(build: Callable[[], Networks]) -> tuple[Networks, Any]:
    """Return the network and an input of ``network.network``, on the ``meta`` device."""
    with torch.device("meta"):
        model = build().eval()
        if isinstance(model, CameraDetector):
            return model, model.empty_input()
        sensors = sensor_shapes(model.config)
        if isinstance(model, BEVFusion):
            return model, sensors
        unmoved = torch.eye(4)[None]
        return model, DenseInput(sensors, model.grid(unmoved, unmoved))
