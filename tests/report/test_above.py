"""Pictures from above: what is ahead of the car is up, what is to its right is right."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from bevquant.data.labels import FREE, MAP_CLASSES, OCCUPANCY_CLASSES
from bevquant.errors import BevquantError
from bevquant.report.above import MAP_COLORS, VOXEL_COLORS, draw_map, draw_voxels


def where(path: Path, color: str, panel: int) -> np.ndarray:
    """Return row and column (0..1 of its panel) of the middle of a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    width = pixels.shape[1] // 3
    part = pixels[:, panel * width : (panel + 1) * width]
    top = part[: int(0.82 * len(part))]  # without the legend
    hit = np.argwhere((np.abs(top - np.array(to_rgb(color)) * 255) < 3).all(axis=-1))
    assert len(hit) > 30
    return hit.mean(axis=0) / part.shape[:2]


def test_map(tmp_path: Path) -> None:
    truth, found = np.zeros((2, 6, 40, 40), dtype=bool)
    truth[MAP_CLASSES.index("carpark_area"), 30:36, 30:36] = True  # right, ahead
    found[MAP_CLASSES.index("carpark_area"), 4:10, 30:36] = True  # left, ahead
    path = tmp_path / "map.png"
    draw_map(truth, found, 20.0, path)
    (row, right), (_, left) = (where(path, MAP_COLORS["carpark_area"], i) for i in (0, 1))
    assert row < 0.35
    assert left < 0.45
    assert right > 0.6
    differs_row, differs_column = where(path, "#d62728", 2)
    assert differs_row < 0.35
    assert left < differs_column < right


def test_voxels(tmp_path: Path) -> None:
    truth = np.full((40, 40, 4), FREE)
    truth[:, :, 0] = OCCUPANCY_CLASSES.index("terrain")
    truth[30:36, 30:36, 2] = OCCUPANCY_CLASSES.index("bus")  # ahead, left
    seen = np.ones(truth.shape, dtype=bool)
    path = tmp_path / "voxels.png"
    draw_voxels(truth, np.where(truth == 3, 15, truth), seen, 8.0, path)
    row, column = where(path, VOXEL_COLORS["bus"], 0)
    assert row < 0.35
    assert column < 0.45
    where(path, VOXEL_COLORS["manmade"], 1)
    with pytest.raises(BevquantError, match="cannot be written"):
        draw_voxels(truth, truth, seen, 8.0, path / "under_a_file.png")
