"""What every row of the search benchmark measures on: SMALL, calibrated, and a few frames."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bevquant.box_error import QueryBoxError
from bevquant.data import preprocess
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.settings import VERSION
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.bevfusion.model import NetworkInput
from bevquant.quant.spec import W8A8
from bevquant.run import calibration_batches, deployable, load_small, quantize_small
from bevquant.search.space import Space, space

CALIBRATION_FRAMES = 16


@dataclass(frozen=True)
class Setup:
    """The network, the frames that genomes are compared on, and what may be chosen."""

    model: BEVFusion
    inputs: list[NetworkInput]
    space: Space
    error: QueryBoxError

    @classmethod
    def load(cls, data: Path, split: str, frames: int) -> "Setup":
        dataset = NuScenesDataset(data, VERSION, split, sweeps=preprocess.SMALL.sweeps)
        batches = calibration_batches(dataset, CALIBRATION_FRAMES)
        model = quantize_small(load_small(), batches, deployable(W8A8))
        with torch.no_grad():
            inputs = [model.prepare(batch) for batch in batches[:: CALIBRATION_FRAMES // frames]]
        return cls(
            model,
            inputs[:frames],
            space(model, pinned={"*matmul*": None}),
            QueryBoxError(model.config.bbox_head),
        )


def forward(model: nn.Module, inputs: NetworkInput) -> object:
    assert isinstance(model, BEVFusion)
    return model.network(inputs)
