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
from bevquant.models.bevfusion.config import HeadConfig, HeadGridConfig

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
CLASS_COST = 0.15
CENTER_COST = 0.25
IOU_COST = 0.25
LARGEST_LOG_SIZE = 5.0

Floats = npt.NDArray[np.float64]


def inside_grid(boxes: Boxes, config: HeadGridConfig) -> Boxes:
    """Return the boxes, on the CPU, whose centre lies in the head's grid."""
    values = boxes.values.cpu()
    cell = _cells(values, config).floor()
    keep = ((cell >= 0) & (cell < torch.tensor(config.grid))).all(dim=1)
    return Boxes(values[keep], boxes.labels.cpu()[keep])


def encode(values: Tensor, config: HeadGridConfig) -> Tensor:
    """Return the head's code of boxes [n, 9] as [n, 10].

    x and y in cells, z of the centre in metres, log of length, width and height, sin and
    cos of the yaw, velocity x and y.
    """
    yaw = values[:, 6:7]
    size = values[:, 3:6].log()
    parts = (_cells(values, config), values[:, 2:3], size, yaw.sin(), yaw.cos(), values[:, 7:])
    return torch.cat(parts, dim=1)


def decode(codes: Tensor, config: HeadGridConfig) -> Tensor:
    """Return the boxes [n, 9] of codes [n, 10]: the inverse of :func:`encode`."""
    center = codes[:, :2] * config.cell_size + torch.tensor(config.origin)
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
    boxes: Sequence[Boxes], config: HeadGridConfig, overlap: float, min_radius: int
) -> Tensor:
    """Return the dense targets [B, classes, X, Y], 1 at the cell of every centre.

    Around it a Gaussian with sigma (2 r + 1) / 6, cut off beyond r cells along x or y;
    where Gaussians of a class meet, the larger counts.

    Args:
        boxes: B sets of boxes inside the grid.
        config: of the head.
        overlap: see :func:`gaussian_radius`.
        min_radius: least r, in cells.
    """
    classes = config.num_classes
    values = torch.cat([truth.values for truth in boxes])
    channels = torch.cat([truth.labels + i * classes for i, truth in enumerate(boxes)])
    center = _cells(values, config).floor()
    length, width = (values[:, 3:5] / config.cell_size).unbind(dim=1)
    radius = gaussian_radius(length, width, overlap).floor().clamp(min=min_radius)[:, None]
    sigma = (2 * radius + 1) / 6
    profiles = []
    for axis, cells in enumerate(config.grid):
        offset = torch.arange(cells) - center[:, axis, None]
        bell = torch.exp(-offset.square() / (2 * sigma.square()))
        profiles.append(bell.where(offset.abs() <= radius, 0))
    bells = profiles[0][:, :, None] * profiles[1][:, None, :]
    heat = torch.zeros(len(boxes) * classes, *config.grid)
    heat.scatter_reduce_(0, channels[:, None, None].expand_as(bells), bells, "amax")
    return heat.view(len(boxes), classes, *config.grid)


def assign(
    logits: Tensor, codes: Tensor, truth: Boxes, config: HeadConfig
) -> tuple[Tensor, Tensor]:
    """Match queries with objects one to one at the least total cost (Hungarian method).

    Cost = 0.15 focal class cost + 0.25 L1 distance of the centres in parts of the grid's
    extent - 0.25 IoU in 3-D.

    Args:
        logits: class logits [Q, classes] of the queries.
        codes: box codes [Q, 10] of the queries.
        truth: ground truth of the frame, on the CPU.
        config: of the head.

    Returns:
        Indices of the matched queries and of their objects, int64 [min(Q, n)] each.
    """
    # A diverging network must not crash here: its loss is what tells.
    finite = codes.detach().cpu().nan_to_num(posinf=0, neginf=0)
    finite[:, 3:6].clamp_(max=LARGEST_LOG_SIZE)
    predicted = decode(finite, config).double()
    wanted = truth.values.double()
    class_cost = focal_cost(logits)[:, truth.labels]
    extent = torch.tensor(config.grid).double() * config.cell_size
    center_cost = torch.cdist(predicted[:, :2] / extent, wanted[:, :2] / extent, p=1)
    overlap = torch.from_numpy(iou_3d(predicted.numpy(), wanted.numpy()))
    cost = CLASS_COST * class_cost + CENTER_COST * center_cost - IOU_COST * overlap
    queries, objects = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(queries), torch.from_numpy(objects)


def focal_cost(logits: Tensor) -> Tensor:
    """Return what the focal loss changes by if a query [Q, classes] is an object of a class."""
    # A diverging network must not crash here: its loss is what tells.
    scores = logits.detach().cpu().double().nan_to_num().sigmoid().clamp(1e-12, 1 - 1e-12)
    positive = -scores.log() * FOCAL_ALPHA * (1 - scores).pow(FOCAL_GAMMA)
    negative = -(1 - scores).log() * (1 - FOCAL_ALPHA) * scores.pow(FOCAL_GAMMA)
    return positive - negative


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


def _cells(values: Tensor, config: HeadGridConfig) -> Tensor:
    return (values[:, :2] - torch.tensor(config.origin)) / config.cell_size
