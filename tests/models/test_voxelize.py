"""Voxels against a loop over the points."""

import torch

from bevquant.models.bevfusion import SMALL
from bevquant.models.bevfusion.voxelize import voxelize


def limited(max_points: int, max_voxels: int):  # type: ignore[no-untyped-def]
    voxels = SMALL.voxels.model_copy(update={"max_points": max_points, "max_voxels": max_voxels})
    return SMALL.model_copy(update={"voxels": voxels})


def by_hand(points: torch.Tensor, max_points: int, max_voxels: int) -> dict[tuple[int, ...], list]:  # type: ignore[type-arg]
    low, size = torch.tensor(SMALL.point_range[:3]), torch.tensor(SMALL.voxels.voxel_size)
    found: dict[tuple[int, ...], list] = {}  # type: ignore[type-arg]
    for point in points:
        cell = tuple(((point[:3] - low) / size).floor().int().tolist())
        if cell not in found and len(found) == max_voxels:
            continue
        kept = found.setdefault(cell, [])
        if len(kept) < max_points:
            kept.append(point)
    return found


def test_first_points_of_first_voxels() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(400, 5, generator=generator) * 1.5
    config = limited(max_points=3, max_voxels=60)
    voxels = voxelize(points, config)
    expected = by_hand(points, 3, 60)
    assert [tuple(cell) for cell in voxels.coordinates.tolist()] == sorted(expected)
    scale = torch.tensor(config.voxels.feature_scale)
    for i, cell in enumerate(sorted(expected)):
        assert voxels.counts[i] == len(expected[cell])
        mean = torch.stack(expected[cell]).mean(0)
        torch.testing.assert_close(voxels.features[i] * scale, mean)


def test_points_outside_the_grid_are_left_out() -> None:
    points = torch.tensor([[0.0, 0, 0, 0, 0], [1000.0, 0, 0, 0, 0]])
    assert len(voxelize(points, SMALL).features) == 1
