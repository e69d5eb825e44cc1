"""Any network of ours without numbers, with the input of one frame."""

from collections.abc import Callable

import torch

from bevquant.models.bevfusion import BEVFusion, NetworkInput
from bevquant.models.bevfusion.shapes import sensor_shapes
from bevquant.models.dense import DenseInput, DenseNetwork

Networks = BEVFusion | DenseNetwork


def shapes_only(build: Callable[[], Networks]) -> tuple[Networks, NetworkInput | DenseInput]:
    """Return the network and an input of ``network.network``, on the ``meta`` device."""
    with torch.device("meta"):
        model = build().eval()
        sensors = sensor_shapes(model.config)
        if isinstance(model, BEVFusion):
            return model, sensors
        unmoved = torch.eye(4)[None]
        return model, DenseInput(sensors, model.grid(unmoved, unmoved))
