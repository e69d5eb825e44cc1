"""What the TransFusion head should have answered: box codes, heat maps, assignment.

Definitions: Bai et al., "TransFusion" (CVPR 2022) in the form of mmdetection3d v1.4.0
(``TransFusionBBoxCoder``, ``HungarianAssigner3D``, ``draw_heatmap_gaussian``); Gaussian
radius from Law and Deng, "CornerNet" (ECCV 2018).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bevquant.data.frame import Boxes

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
CLASS_COST = 0.15
CENTER_COST = 0.25
IOU_COST = 0.25

Floats = npt.NDArray[np.float64]


class Grid:
    """The BEV grid of the head: metres in the LiDAR frame <-> cells.

    Args:
        point_range: lower x, y, z, then upper x, y, z bounds in metres.
        shape: cells along x and y.
    """

    def __init__(self, point_range: Sequence[float], shape: Sequence[int]):
        self.shape = (shape[0], shape[1])
        self.low = torch.tensor(point_range[:2])
        self.extent = torch.tensor(point_range[3:5]) - self.low
        self.cell = self.extent / torch.tensor(self.shape)

    def inside(self, boxes: Boxes) -> Boxes:
        """Return the boxes, on the CPU, whose centre lies in the grid."""
        values = boxes.values.cpu()
        relative = (values[:, :2] - self.low) / self.extent
        keep = ((relative >= 0) & (relative < 1)).all(dim=1)
        return Boxes(values[keep], boxes.labels.cpu()[keep])

    def encode(self, values: Tensor) -> Tensor:
        """Return the head's code of boxes [n, 9] as [n, 10].

        x and y in cells, z of the centre in metres, log of length, width and height, sin
        and cos of the yaw, velocity x and y.
        """
        center = (values[:, :2] - self.low) / self.cell
        yaw = values[:, 6:7]
        parts = (center, values[:, 2:3], values[:, 3:6].log(), yaw.sin(), yaw.cos(), values[:, 7:])
        return torch.cat(parts, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the boxes [n, 9] of codes [n, 10]: the inverse of :meth:`encode`."""
        center = codes[:, :2] * self.cell + self.low
        yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
        return torch.cat((center, codes[:, 2:3], codes[:, 3:6].exp(), yaw, codes[:, 8:]), dim=1)


def gaussian_radius(length: Tensor, width: Tensor, overlap: float) -> Tensor:
    """Return the radius within which a shifted box keeps ``overlap`` IoU, in cells.

    CornerNet's three cases, with the divisor 2 (not 2a) of its published code, which
    mmdetection3d and every model trained with it share.
    """
    total, area = length + width, length * width
    cases = (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, (1 - overlap) * area),
        (4 * overlap, -2 * overlap * total, (overlap - 1) * area),
    )
    radii = [(b + (b.square() - 4 * a * c).sqrt()) / 2 for a, b, c in cases]
    return torch.stack(radii).amin(dim=0)


def gaussian_heatmaps(
    boxes: Sequence[Boxes], grid: Grid, classes: int, overlap: float, min_radius: int
) -> Tensor:
    """Return the dense targets [B, classes, X, Y], 1 at the cell of every centre.

    Around it a Gaussian with sigma (2 r + 1) / 6, cut off beyond r cells along x or y;
    where Gaussians of a class meet, the larger counts.

    Args:
        boxes: B sets of boxes inside the grid.
        grid: cells of the heat map.
        classes: number of classes.
        overlap: see :func:`gaussian_radius`.
        min_radius: least r, in cells.
    """
    heat = torch.zeros(len(boxes) * classes, *grid.shape)
    values = torch.cat([truth.values for truth in boxes])
    channels = torch.cat([truth.labels + i * classes for i, truth in enumerate(boxes)])
    center = ((values[:, :2] - grid.low) / grid.cell).floor()
    radius = gaussian_radius(values[:, 3] / grid.cell[0], values[:, 4] / grid.cell[1], overlap)
    radius = radius.floor().clamp(min=min_radius)[:, None]
    sigma = (2 * radius + 1) / 6
    profiles = []
    for axis, cells in enumerate(grid.shape):
        offset = torch.arange(cells) - center[:, axis, None]
        bell = torch.exp(-offset.square() / (2 * sigma.square()))
        profiles.append(bell.where(offset.abs() <= radius, 0))
    bells = profiles[0][:, :, None] * profiles[1][:, None, :]
    heat.index_reduce_(0, channels, bells, "amax")
    return heat.view(len(boxes), classes, *grid.shape)


def assign(logits: Tensor, codes: Tensor, truth: Boxes, grid: Grid) -> tuple[Tensor, Tensor]:
    """Match queries with objects one to one at the least total cost (Hungarian method).

    Cost = 0.15 focal class cost + 0.25 L1 distance of the centres in parts of the grid's
    extent - 0.25 IoU in 3-D.

    Args:
        logits: class logits [Q, classes] of the queries.
        codes: box codes [Q, 10] of the queries.
        truth: ground truth of the frame, on the CPU.
        grid: of the head.

    Returns:
        Indices of the matched queries and of their objects, int64 [min(Q, n)] each.
    """
    scores = logits.detach().cpu().sigmoid().double().clamp(1e-12, 1 - 1e-12)
    predicted = grid.decode(codes.detach().cpu().clamp(-LARGEST_CODE, LARGEST_CODE)).double()
    wanted = truth.values.double()
    positive = -scores.log() * FOCAL_ALPHA * (1 - scores).pow(FOCAL_GAMMA)
    negative = -(1 - scores).log() * (1 - FOCAL_ALPHA) * scores.pow(FOCAL_GAMMA)
    class_cost = (positive - negative)[:, truth.labels]
    scale = grid.extent.double()
    center_cost = torch.cdist(predicted[:, :2] / scale, wanted[:, :2] / scale, p=1)
    overlap = torch.from_numpy(iou_3d(predicted.numpy(), wanted.numpy()))
    cost = CLASS_COST * class_cost + CENTER_COST * center_cost - IOU_COST * overlap
    queries, objects = linear_sum_assignment(cost.nan_to_num().numpy())
    return torch.from_numpy(queries), torch.from_numpy(objects)


def iou_3d(first: Floats, second: Floats) -> Floats:
    """Return the exact IoU [m, n] of the oriented boxes [m, 9] and [n, 9]."""
    distance = np.linalg.norm(first[:, None, :2] - second[None, :, :2], axis=-1)
    reach = np.linalg.norm(first[:, 3:5], axis=-1)[:, None] + np.linalg.norm(
        second[:, 3:5], axis=-1
    )
    i, j = np.nonzero(distance < reach / 2)
    a, b = first[i], second[j]
    top = np.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    bottom = np.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    area = shapely.area(shapely.intersection(footprints(first)[i], footprints(second)[j]))
    common = area * (top - bottom).clip(min=0)
    union = a[:, 3:6].prod(axis=1) + b[:, 3:6].prod(axis=1) - common
    iou = np.zeros(distance.shape)
    iou[i, j] = common / union
    return iou


def footprints(boxes: Floats) -> npt.NDArray[np.object_]:
    """Return the boxes' rectangles on the ground as n shapely polygons."""
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along = np.stack((cos, sin), axis=1) * boxes[:, 3:4] / 2
    across = np.stack((-sin, cos), axis=1) * boxes[:, 4:5] / 2
    corners = np.stack((along + across, across - along, -along - across, along - across), axis=1)
    return np.asarray(shapely.polygons(boxes[:, None, :2] + corners))
