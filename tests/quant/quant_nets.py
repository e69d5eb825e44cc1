"""Small networks with the traits that a quantizer must cope with."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.nn import MatMul


class ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Conv-BatchNorm-ReLU with residuals, a transposed convolution and a linear head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.body = nn.Sequential(ConvBlock(width, width), ConvBlock(width, 2 * width, 2))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 2, 2, groups=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.body(self.stem(x))).mean((2, 3)))


class ViTBlock(nn.Module):
    """Attention whose two products are modules."""

    def __init__(self, dim: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.scores = MatMul()
        self.mix = MatMul()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.qkv(self.norm(x)).view(shape).permute(2, 0, 3, 1, 4)
        attention = self.scores(q, k.transpose(-1, -2)).softmax(-1)
        return x + self.proj(self.mix(attention, v).transpose(1, 2).flatten(2))


class GatherConv(nn.Module):
    """Sparse convolution over voxel features [n, in] by a neighbour table [n, k]."""

    quant_weight_axis = 0

    def __init__(self, inputs: int, outputs: int, positions: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, positions, inputs))

    def forward(self, features: Tensor, table: Tensor) -> Tensor:
        gathered = F.pad(features, (0, 0, 0, 1))[table].flatten(1)
        return gathered @ self.weight.flatten(1).t()


class TwoSensors(nn.Module):
    """Takes a dictionary, returns one, and runs a sparse branch beside a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.voxels = GatherConv(5, 4)
        self.voxel_norm = nn.BatchNorm1d(4)
        self.fuse = nn.Linear(8, 2)
        self.auxiliary = nn.Linear(4, 1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image = self.camera(batch["image"]).mean((0, 2, 3))
        voxels = self.voxel_norm(self.voxels(batch["features"], table=batch["table"])).relu()
        return {"fused": self.fuse(torch.cat((image, voxels.mean(0))))}


def two_sensor_batch(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(2, 3, 6, 6, generator=generator),
        "features": torch.randn(7, 5, generator=generator),
        "table": torch.randint(0, 8, (7, 3), generator=generator),
    }


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, and norms that have seen data, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point():
                value.normal_(generator=generator)
                if name.endswith(("running_var", "norm.weight")):
                    value.abs_().add_(0.1)
    return model.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
