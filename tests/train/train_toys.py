"""A toy run: frames made up in memory and a BEVFusion of a few thousand weights."""

from dataclasses import dataclass

import numpy as np
import torch

from bevquant.data.frame import Boxes, Frame
from bevquant.data.preprocess import Preprocess
from bevquant.models.bevfusion import SMALL, BEVFusionConfig

RANGE = (-8.0, -8.0, -5.0, 8.0, 8.0, 3.0)

PREPROCESS = Preprocess(image_size=(32, 64), image_resize=1.0, point_range=RANGE, sweeps=0)


@dataclass(frozen=True)
class ToyFrames:
    """Six cameras in a ring and one box of points per frame, from the frame's index alone."""

    count: int
    split: str = "toy"

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        return f"toy{self.count}"

    def frame(self, index: int) -> Frame:
        random = np.random.default_rng(index)
        center = np.array([*random.uniform(-6, 6, 2), 0.0])
        box = np.array([*center, 2.0, 1.0, 1.0, random.uniform(-3, 3), 1.0, 0.5])
        near = center + random.uniform(-0.4, 0.4, (60, 3))
        cloud = np.concatenate([near, random.uniform(-7, 7, (200, 3)) * (1, 1, 0.1)])
        points = np.concatenate([cloud, random.uniform(0, 1, (len(cloud), 2))], axis=1)
        return Frame(
            token=f"frame{index}",
            images=tuple(random.integers(0, 255, (32, 64, 3), dtype=np.uint8) for _ in range(6)),
            intrinsics=np.tile([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]], (6, 1, 1)),
            lidar2camera=np.stack([looking(k * np.pi / 3) for k in range(6)]),
            points=points.astype(np.float32),
            lidar2ego=np.eye(4),
            ego2global=np.eye(4),
            boxes=Boxes(torch.tensor(box[None]).float(), torch.tensor([index % 10])),
            boxes_points=np.array([60]),
        )


def looking(heading: float) -> np.ndarray:
    """Return LiDAR -> camera of a camera 0.3 m ahead of the LiDAR that looks along heading."""
    forward = np.array([np.cos(heading), np.sin(heading), 0])
    down = np.array([0, 0, -1.0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.cross(down, forward), down, forward])
    matrix[:3, 3] = (0, 0, -0.3)
    return matrix


def toy_config() -> BEVFusionConfig:
    """Return SMALL on smaller images and a grid of 16 x 16 cells."""
    cells = (-8.0, 8.0, 1.0)
    config = SMALL.model_dump()
    config["image_size"] = PREPROCESS.image_size
    config["point_range"] = RANGE
    config["img_backbone"]["embed_dims"] = 8
    config["view_transform"] |= {
        "depth_bounds": (1.0, 9.0, 1.0),
        "x_bounds": cells,
        "y_bounds": cells,
    }
    config["voxels"]["voxel_size"] = (0.25, 0.25, 0.4)
    config["bbox_head"] |= {
        "grid": (16, 16),
        "origin": (-8.0, -8.0),
        "cell_size": 1.0,
        "num_proposals": 8,
    }
    return BEVFusionConfig.model_validate(config)
