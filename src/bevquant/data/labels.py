"""Labels of dense tasks: what the classes are, and where their cells lie.

BEV maps as in BEVFusion (Liu et al., ICRA 2023), rasterised from nuScenes' map expansion;
occupancy as in Occ3D-nuScenes (Tian et al., NeurIPS 2023).
"""

from dataclasses import dataclass

from torch import Tensor

MAP_CLASSES = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
"""Map classes in the order of BEVFusion's segmentation head; a cell may have several."""

OCCUPANCY_CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
    "free",
)
"""Classes of a voxel in Occ3D's label order; the last one is the absence of all others."""

FREE = OCCUPANCY_CLASSES.index("free")

VOXEL = 0.4
"""Side of a voxel, metres."""

OCCUPANCY_SHAPE = (200, 200, 16)
"""Voxels along x, y, z."""

OCCUPANCY_ORIGIN = (-40.0, -40.0, -1.0)
"""Corner of voxel (0, 0, 0) in the frame of the car: x forward, y left, z up, metres."""


@dataclass(frozen=True)
class MapGrid:
    """The cells of a BEV map in the LiDAR frame; cell (i, j) is the i-th along x.

    Attributes:
        reach: the map covers -reach..reach along x and y, metres.
        cell: side of a cell, metres.
    """

    reach: float
    cell: float

    @property
    def cells(self) -> int:
        """Cells along one side."""
        return round(2 * self.reach / self.cell)


@dataclass(frozen=True)
class Occupancy:
    """Occ3D's labels of one frame, or of B frames with B in front.

    Attributes:
        semantics: uint8 [200, 200, 16] over x, y, z of the car's frame, index into
            :data:`OCCUPANCY_CLASSES`.
        mask_lidar: bool, voxels that a LiDAR beam reached or passed.
        mask_camera: bool, voxels that a camera sees; the benchmark counts these only.
    """

    semantics: Tensor
    mask_lidar: Tensor
    mask_camera: Tensor
