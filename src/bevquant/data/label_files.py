"""Reading the labels of dense tasks: nuScenes' map expansion, and Occ3D's voxels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import torch

from bevquant.data.frame import Array
from bevquant.data.labels import MAP_CLASSES, OCCUPANCY_CLASSES, OCCUPANCY_SHAPE, MapGrid, Occupancy
from bevquant.errors import BevquantError
from bevquant.files import read_json

LAYERS = {name: (name,) for name in MAP_CLASSES} | {"divider": ("road_divider", "lane_divider")}
"""Layers of the map expansion that make up each class (BEVFusion's ``LoadBEVSegmentation``)."""

LINE_CELLS = 2
"""Width at which the devkit draws lines, in cells."""


LABEL_SUFFIXES = {".json", ".npz"}
"""Of the files with map and occupancy labels."""


class LabelFiles:
    """The labels of a data root: where they are, and what they say.

    Args:
        root: holds ``maps/expansion`` and ``gts``.
        map_grid: cells of the map labels; there are none without.
        occupancy: whether there are occupancy labels.
    """

    def __init__(self, root: Path, map_grid: MapGrid | None, occupancy: bool) -> None:
        self._root, self._map_grid, self._occupancy = root, map_grid, occupancy
        self._maps: dict[str, RoadMap] = {}

    def map_files(self, locations: Iterable[str]) -> list[Path]:
        """Return the files with the maps of some locations, each once."""
        if self._map_grid is None:
            return []
        return [self._map_path(location) for location in sorted(set(locations))]

    def voxel_files(self, scene: str, token: str) -> list[Path]:
        """Return the files with the occupancy of sample ``token``."""
        return [self._voxel_path(scene, token)] if self._occupancy else []

    def map_masks(self, location: str, lidar2global: Array) -> Array | None:
        """Return the map round the LiDAR, see :meth:`RoadMap.raster`, if there are maps."""
        if self._map_grid is None:
            return None
        if location not in self._maps:
            self._maps[location] = RoadMap(self._map_path(location))
        return self._maps[location].raster(lidar2global, self._map_grid)

    def voxels(self, scene: str, token: str) -> Occupancy | None:
        """Return the occupancy of sample ``token``, if there is any."""
        return read_occupancy(self._voxel_path(scene, token)) if self._occupancy else None

    def _map_path(self, location: str) -> Path:
        return self._root / "maps" / "expansion" / f"{location}.json"

    def _voxel_path(self, scene: str, token: str) -> Path:
        return self._root / "gts" / scene / token / "labels.npz"


@dataclass(frozen=True)
class _Shape:
    """A line, or a polygon and its holes: float64 [n, 2] each, global metres."""

    rings: tuple[Array, ...]
    is_line: bool

    @cached_property
    def bounds(self) -> Array:
        """Lowest and highest x, y: float64 [2, 2]."""
        return np.stack([self.rings[0].min(axis=0), self.rings[0].max(axis=0)])


class RoadMap:
    """The vector map of one location (nuScenes' map expansion, version 1.3).

    Args:
        path: ``maps/expansion/LOCATION.json``.

    Raises:
        BevquantError: the file is missing, or not such a map.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise BevquantError(
                f"{path}: no map of this location; unpack nuScenes' map expansion (v1.3) there, "
                "or generate the world with --labels"
            )
        content = read_json(path)
        try:
            self._shapes = {name: list(_shapes(content, name)) for name in MAP_CLASSES}
        except (KeyError, TypeError) as error:
            raise BevquantError(
                f"{path}: not a map expansion of version 1.3 ({error!r} is missing or wrong); "
                "restore it"
            ) from error

    def raster(self, lidar2global: Array, grid: MapGrid) -> Array:
        """Draw the map round the LiDAR: bool [6, X, Y], classes of :data:`MAP_CLASSES`.

        Cells are filled as the devkit's ``get_map_mask`` fills them (outlines rounded to whole
        cells and drawn too, lines two cells wide), so that figures compare with BEVFusion's.

        Args:
            lidar2global: float64 [4, 4]; the map turns with the LiDAR's x axis.
            grid: the cells.
        """
        heading = np.arctan2(lidar2global[1, 0], lidar2global[0, 0])
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, -sin], [sin, cos]])
        middle, reach = lidar2global[:2, 3], np.sqrt(2) * grid.reach
        masks = np.zeros((len(MAP_CLASSES), grid.cells, grid.cells), dtype=np.uint8)
        for mask, name in zip(masks, MAP_CLASSES, strict=True):
            for shape in self._shapes[name]:
                low, high = shape.bounds
                if (low > middle + reach).any() or (high < middle - reach).any():
                    continue
                rings = [((r - middle) @ turn + grid.reach) / grid.cell for r in shape.rings]
                if shape.is_line:
                    cells = [ring.astype(np.int32) for ring in rings]
                    cv2.polylines(mask, cells, False, 1, LINE_CELLS)  # type: ignore[call-overload]
                else:
                    cv2.fillPoly(mask, [ring.round().astype(np.int32) for ring in rings], 1)  # type: ignore[call-overload]
        return masks.swapaxes(1, 2).astype(bool)  # drawn as [Y, X]


def read_occupancy(path: Path) -> Occupancy:
    """Read a ``labels.npz`` of Occ3D-nuScenes.

    Raises:
        BevquantError: the file is missing, damaged, or of another grid or other classes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in ("semantics", "mask_lidar", "mask_camera")]
    except FileNotFoundError as error:
        raise BevquantError(
            f"{path}: no occupancy labels of this frame; unpack Occ3D-nuScenes' gts there, or "
            "generate the world with --labels"
        ) from error
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise BevquantError(
            f"{path}: not readable as Occ3D labels ({error}); restore it"
        ) from error
    semantics, lidar, camera = arrays
    shapes = {array.shape for array in arrays}
    if shapes != {OCCUPANCY_SHAPE} or semantics.max() >= len(OCCUPANCY_CLASSES):
        raise BevquantError(
            f"{path}: shapes {sorted(shapes)} and classes up to {semantics.max()} are not "
            f"Occ3D-nuScenes' {OCCUPANCY_SHAPE} and {len(OCCUPANCY_CLASSES) - 1}; restore it"
        )
    return Occupancy(
        torch.from_numpy(semantics.astype(np.uint8)),
        torch.from_numpy(lidar.astype(bool)),
        torch.from_numpy(camera.astype(bool)),
    )


def _shapes(content: dict[str, Any], name: str) -> Iterator[_Shape]:
    """Yield the shapes of a class from the tables of a map expansion."""
    tables = {
        table: {record["token"]: record for record in content[table]}
        for table in ("node", "line", "polygon")
    }

    def ring(tokens: list[str]) -> Array:
        nodes = tables["node"]
        return np.array([[nodes[token]["x"], nodes[token]["y"]] for token in tokens])

    for layer in LAYERS[name]:
        for record in content[layer]:
            if "line_token" in record:
                tokens = tables["line"][record["line_token"]]["node_tokens"]
                if tokens:
                    yield _Shape((ring(tokens),), is_line=True)
                continue
            for token in record.get("polygon_tokens") or [record["polygon_token"]]:
                polygon = tables["polygon"][token]
                holes = [hole["node_tokens"] for hole in polygon["holes"] if hole["node_tokens"]]
                outline = ring(polygon["exterior_node_tokens"])
                yield _Shape((outline, *map(ring, holes)), is_line=False)
