"""IoU of maps and voxels against counting in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevquant.data.labels import FREE, MAP_CLASSES, OCCUPANCY_CLASSES, Occupancy
from bevquant.metrics.agreement import MapError, OccupancyError
from bevquant.metrics.occupancy import VoxelIoU
from bevquant.metrics.segmentation import THRESHOLDS, MapIoU

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_map_iou(seed: int) -> None:
    random = np.random.default_rng(seed)
    # Many probabilities lie exactly on a threshold, which counts.
    probabilities = random.choice([0.1, *THRESHOLDS, 0.9], (3, 6, 4, 5)).astype(np.float32)
    truth = random.random((3, 6, 4, 5)) < random.random((1, 6, 1, 1))
    metric = MapIoU()
    for i in range(3):
        metric.add(torch.from_numpy(probabilities[i : i + 1]), torch.from_numpy(truth[i : i + 1]))
    result = metric.result()
    means = []
    for index, name in enumerate(MAP_CLASSES):
        ious = []
        for threshold in THRESHOLDS:
            found = {
                tuple(p) for p in np.argwhere(probabilities[:, index] >= np.float32(threshold))
            }
            wanted = {tuple(p) for p in np.argwhere(truth[:, index])}
            ious.append(len(found & wanted) / max(len(found | wanted), 1))
        assert result.per_class[name]["IoU"] == pytest.approx(max(ious))
        assert ious[THRESHOLDS.index(result.per_class[name]["threshold"])] == max(ious)
        means.append(max(ious))
    assert result.mIoU == pytest.approx(sum(means) / 6)
    assert result.frames == 3
    assert result.summary()["mIoU"] == result.mIoU


@given(seeds, st.sampled_from(["camera", "lidar", "none"]))
@settings(max_examples=20, deadline=None)
def test_voxel_iou(seed: int, mask: str) -> None:
    random = np.random.default_rng(seed)
    shape = (2, 4, 5, 3)
    used = random.choice(len(OCCUPANCY_CLASSES), 6, replace=False)
    truth, found = random.choice(used, shape), random.choice(used, shape)
    masks = {"camera": random.random(shape) < 0.5, "lidar": random.random(shape) < 0.5}
    metric = VoxelIoU(mask)
    for i in range(2):
        labels = Occupancy(
            torch.from_numpy(truth[i : i + 1].astype(np.uint8)),
            torch.from_numpy(masks["lidar"][i : i + 1]),
            torch.from_numpy(masks["camera"][i : i + 1]),
        )
        metric.add(torch.from_numpy(found[i : i + 1]), labels)
    result = metric.result()
    counted = masks.get(mask, np.ones(shape, dtype=bool))
    ious = []
    for index, name in enumerate(OCCUPANCY_CLASSES[:FREE]):
        a, b = (found == index) & counted, (truth == index) & counted
        if (a | b).any():
            ious.append((a & b).sum() / (a | b).sum())
            assert result.per_class[name] == pytest.approx(ious[-1])
        else:
            assert math.isnan(result.per_class[name])
            assert result.to_json()["per_class"][name] is None
            assert name not in result.summary()
    assert "free" not in result.per_class
    if ious:
        assert result.mIoU == pytest.approx(np.mean(ious))


def test_errors_against_the_float_network() -> None:
    logits = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    error = MapError(torch.sigmoid)
    assert error(logits, logits) == pytest.approx(0, abs=1e-6)
    assert error(-logits, logits) > 0.9
    one = torch.full((1, 6, 2, 2), -9.0)
    one[0, 2, 0] = 9.0
    other = one.clone()
    other[0, 2, 1, 0] = 9.0
    assert error(other, one) == pytest.approx(1 / 3)  # of the one class that occurs
    assert error(one[:, :, 1:], one[:, :, 1:]) == 0
    scores = torch.randn(1, 4, 4, 2, 18, generator=torch.Generator().manual_seed(0))
    voxels = OccupancyError(lambda output: output.argmax(-1).to(torch.uint8))
    assert voxels(scores, scores) == pytest.approx(0, abs=1e-6)
    assert 0 < voxels(scores + 0.3 * torch.rand_like(scores), scores) < voxels(-scores, scores)
