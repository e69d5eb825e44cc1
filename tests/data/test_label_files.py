import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bevquant.data import preprocess
from bevquant.data.label_files import RoadMap, read_occupancy
from bevquant.data.labels import MapGrid
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.data.world import VERSION
from bevquant.errors import BevquantError

LABELS = ("semantics", "mask_lidar", "mask_camera")


def opened(root: Path, **labels) -> NuScenesDataset:
    return NuScenesDataset(root, VERSION, "world_val", sweeps=0, **labels)


def test_labels_of_a_frame_and_of_a_batch(tiny_world: Path) -> None:
    data = opened(tiny_world, map_grid=MapGrid(20, 0.5), occupancy=True)
    data.check()
    frames = [data.frame(index) for index in range(2)]
    batch = collate(frames, preprocess.SMALL)
    assert batch.map_masks.shape == (2, 6, 80, 80)
    assert batch.map_masks.dtype == torch.bool
    assert batch.occupancy.semantics.shape == (2, 200, 200, 16)
    assert torch.equal(batch.occupancy.mask_camera[1], frames[1].occupancy.mask_camera)
    assert batch.lidar2ego.shape == (2, 4, 4)
    mixed = collate([frames[0], dataclasses.replace(frames[1], occupancy=None)], preprocess.SMALL)
    assert mixed.occupancy is None
    assert mixed.map_masks is not None


def test_no_labels_unless_asked_for(tiny_world: Path) -> None:
    frame = opened(tiny_world).frame(0)
    assert frame.map_masks is None
    assert frame.occupancy is None


@pytest.mark.parametrize("kind", ["maps/expansion", "gts"])
def test_missing_labels_are_named_before_any_work(damaged_world: Path, kind: str) -> None:
    files = [path for path in (damaged_world / kind).rglob("*") if path.is_file()]
    for path in files:
        path.unlink()
    data = opened(damaged_world, map_grid=MapGrid(20, 0.5), occupancy=True)
    with pytest.raises(BevquantError, match="--labels") as caught:
        data.check()
    assert kind in str(caught.value)
    with pytest.raises(BevquantError, match="--labels") as caught:
        data.frame(0)
    assert str(damaged_world / kind) in str(caught.value)
    opened(damaged_world).check()  # nobody else needs them


@pytest.mark.parametrize("text", ["{}", "[]", '{"node": [], "line": [], "polygon": [{}]}'])
def test_not_a_map(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BevquantError, match=r"x\.json: not a map expansion"):
        RoadMap(tmp_path / "x.json")


def test_holes_and_lines(tmp_path: Path) -> None:
    """A ring of road round a lawn, and a line: drawn by hand on a grid of 1 m."""
    square = {"a": (-4, -4), "b": (4, -4), "c": (4, 4), "d": (-4, 4)}
    hole = {"e": (-2, -2), "f": (2, -2), "g": (2, 2), "h": (-2, 2)}
    nodes = [{"token": k, "x": x, "y": y} for k, (x, y) in (square | hole).items()]
    layers = ("ped_crossing", "walkway", "stop_line", "carpark_area", "lane_divider")
    content = {
        "node": nodes,
        "polygon": [
            {
                "token": "p",
                "exterior_node_tokens": list(square),
                "holes": [{"node_tokens": list(hole)}],
            }
        ],
        "line": [{"token": "l", "node_tokens": ["a", "c"]}],
        "drivable_area": [{"token": "x", "polygon_tokens": ["p"]}],
        "road_divider": [{"token": "y", "line_token": "l"}],
        **{layer: [] for layer in layers},
    }
    path = tmp_path / "town.json"
    path.write_text(__import__("json").dumps(content))
    masks = RoadMap(path).raster(np.eye(4), MapGrid(8, 1))
    assert masks.shape == (6, 16, 16)
    assert masks[0, 5, 5] and masks[0, 11, 11]
    assert not masks[0, 8, 8]  # the lawn
    assert not masks[0, 2].any()
    assert masks[5, 6, 6] and masks[5, 9, 9]
    assert not masks[5, 5, 10]
    turned = np.eye(4)
    turned[:2, :2] = [[0, -1], [1, 0]]
    shifted = np.eye(4)
    shifted[0, 3] = 3.0
    assert not RoadMap(path).raster(turned, MapGrid(8, 1))[5, 6, 6]  # the diagonal is turned
    np.testing.assert_array_equal(
        RoadMap(path).raster(shifted, MapGrid(8, 1))[0, 2:13], masks[0, 5:16]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"semantics": np.zeros((2, 2, 2), dtype=np.uint8)},
        {"semantics": np.full((200, 200, 16), 18, dtype=np.uint8)},
        {"mask_camera": None},
    ],
)
def test_labels_of_another_form(tmp_path: Path, change: dict[str, np.ndarray | None]) -> None:
    arrays = {name: np.zeros((200, 200, 16), dtype=np.uint8) for name in LABELS} | change
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(BevquantError, match=r"labels\.npz"):
        read_occupancy(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_damaged_labels(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.npz"
    path.write_bytes(content)
    with pytest.raises(BevquantError, match=r"labels\.npz: not readable"):
        read_occupancy(path)
