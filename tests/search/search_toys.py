"""A small network with two branches, and what a search needs of it."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bevquant as bq
from bevquant.nn import MatMul


class TwoBranches(nn.Module):
    """Camera and LiDAR branch, a fuser that works in place, and a head with a product."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.lidar = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.fuser = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 8))
        self.head = Head()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        camera = self.camera(batch["image"])
        camera += 1.0
        lidar = self.lidar(batch["points"])
        return self.head(self.fuser(torch.cat((camera, lidar), -1)))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = MatMul()
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.scores(self.scores_of(x), x))

    def scores_of(self, x: Tensor) -> Tensor:
        return (x @ x.transpose(-1, -2)).softmax(-1)


def batches(count: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randn(4, 6, generator=generator),
            "points": torch.randn(4, 5, generator=generator),
        }
        for _ in range(count)
    ]


def quantized(seed: int = 0) -> TwoBranches:
    torch.manual_seed(seed)
    model = bq.quantize(TwoBranches().eval(), bq.W8A8)
    bq.calibrate(model, batches())
    return model


def choices(*bits: int) -> tuple[bq.Precision, ...]:
    return tuple(bq.Precision(b, 8) for b in bits)


def squared_error(outputs: Tensor, float_outputs: Tensor) -> float:
    return float((outputs - float_outputs).square().mean())


def dying(outputs: Any, float_outputs: Any) -> float:
    """Kills the process that runs it, as long as the file named in DYING has lines left."""
    path = Path(os.environ["DYING"])
    lives = path.read_text().splitlines()
    if lives:
        path.write_text("\n".join(lives[1:]))
        os._exit(9)
    return squared_error(outputs, float_outputs)
