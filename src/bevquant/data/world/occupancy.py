"""Occupancy labels in the form of Occ3D: what fills each voxel, and who can see it."""

from collections.abc import Mapping

import numpy as np

from bevquant.data.labels import FREE, OCCUPANCY_CLASSES, OCCUPANCY_ORIGIN, OCCUPANCY_SHAPE, VOXEL
from bevquant.data.world.appearance import Material
from bevquant.data.world.camera import pixel_rays
from bevquant.data.world.geometry import Array, Solids, rotate
from bevquant.data.world.ground import Surface
from bevquant.data.world.rig import LIDAR, MOUNTS, Pose, mount_pose
from bevquant.data.world.scene import Scene

_MARGIN = VOXEL / 4
"""Boxes grow by this on every side, so that nothing 0.2 m thick slips between the centres."""

_STRIDE = 2
"""Every second row and column of an image casts a ray."""

_STEP = 0.5
"""Voxels between the places on a ray that are looked at; a clipped corner may be missed."""

_GROUND = {
    Surface.GRASS: "terrain",
    Surface.ROAD: "driveable_surface",
    Surface.WALKWAY: "sidewalk",
    Surface.MARKING: "driveable_surface",
    Surface.KERB: "sidewalk",
}


def semantics(scene: Scene, time: float) -> Array:
    """Return what fills each voxel round the car at ``time``: uint8 [200, 200, 16].

    A voxel belongs to the last of ground, scenery and objects that holds its centre. What is
    not annotated but looks like an object is man-made.
    """
    ego = scene.ego(time)
    voxels = np.full(OCCUPANCY_SHAPE, FREE, dtype=np.uint8)
    _fill_ground(voxels, scene, ego)
    solids = scene.solids(time)
    # Scenery first: an object that leans into a tree is the object.
    order = np.argsort(solids.owner >= 0, kind="stable")
    classes = _classes(scene, solids)
    for index in order.tolist():
        _fill_box(voxels, solids, index, ego, classes[index])
    return voxels


def camera_mask(depths: Mapping[str, Array]) -> Array:
    """Return the voxels (bool [200, 200, 16]) on the rays of the cameras up to what they hit.

    Args:
        depths: channel -> float32 [H, W], metres along the optical axis.
    """
    seen = np.zeros(OCCUPANCY_SHAPE, dtype=bool)
    for channel, depth in depths.items():
        pose = mount_pose(channel)
        size = (depth.shape[0], depth.shape[1])
        rays = pixel_rays(MOUNTS[channel].camera_matrix(size), size)
        directions = rotate(pose.rotation, rays[::_STRIDE, ::_STRIDE]).reshape(-1, 3)
        _mark_rays(seen, pose.translation, directions, depth[::_STRIDE, ::_STRIDE].ravel())
    return seen


def lidar_mask(points: Array) -> Array:
    """Return the voxels (bool [200, 200, 16]) that LiDAR beams reached or passed.

    Args:
        points: float32 [P, 5] of the key frame's sweep, in the sensor's frame.
    """
    pose = mount_pose(LIDAR)
    seen = np.zeros(OCCUPANCY_SHAPE, dtype=bool)
    directions = rotate(pose.rotation, points[:, :3])
    _mark_rays(seen, pose.translation, directions, np.ones(len(points), dtype=np.float32))
    return seen


def _centres(axis: int, first: int = 0, last: int | None = None) -> Array:
    """Return the middles of voxels ``first`` to ``last`` along an axis of the car's frame."""
    indices = np.arange(first, OCCUPANCY_SHAPE[axis] if last is None else last)
    return OCCUPANCY_ORIGIN[axis] + (indices + 0.5) * VOXEL


def _fill_ground(voxels: Array, scene: Scene, ego: Pose) -> None:
    """Mark the voxel of each column that the ground passes, by its surface."""
    x, y = np.meshgrid(_centres(0), _centres(1), indexing="ij")
    # A point (x, y, z) of the car's frame is on the plane where normal . (R p + t) is zero.
    normal = scene.plane.normal()
    a, b, c = (float((normal * ego.rotation[:, i]).sum()) for i in range(3))
    z = -(a * x + b * y + float((normal * ego.translation).sum())) / c
    layer = np.floor((z - OCCUPANCY_ORIGIN[2]) / VOXEL).astype(np.int64)
    rotation, translation = ego.rotation, ego.translation
    place = [
        rotation[i, 0] * x + rotation[i, 1] * y + rotation[i, 2] * z + translation[i]
        for i in range(2)
    ]
    names = np.array([OCCUPANCY_CLASSES.index(_GROUND[surface]) for surface in Surface])
    surface = names[scene.block.town.surface(*place)]
    i, j = np.nonzero((layer >= 0) & (layer < OCCUPANCY_SHAPE[2]))
    voxels[i, j, layer[i, j]] = surface[i, j]


def _classes(scene: Scene, solids: Solids) -> list[int]:
    """Return the class of every solid."""
    plants = np.isin(solids.material, (Material.FOLIAGE, Material.BARK))
    names = ["vegetation" if plant else "manmade" for plant in plants]
    for index, owner in enumerate(solids.owner.tolist()):
        if owner >= 0 and scene.actors[owner].kind.category is not None:
            names[index] = scene.actors[owner].kind.name
    return [OCCUPANCY_CLASSES.index(name) for name in names]


def _fill_box(voxels: Array, solids: Solids, index: int, ego: Pose, label: int) -> None:
    """Mark the voxels whose centres lie in one box."""
    half = solids.half[index] + _MARGIN
    centre = ego.inverse(solids.centre[index])
    radius = float(np.sqrt((half**2).sum()))
    window = []
    for axis in range(3):
        low = (centre[axis] - radius - OCCUPANCY_ORIGIN[axis]) / VOXEL
        high = (centre[axis] + radius - OCCUPANCY_ORIGIN[axis]) / VOXEL
        first, last = max(int(low), 0), min(int(high) + 1, OCCUPANCY_SHAPE[axis])
        if first >= last:
            return
        window.append((first, last))
    middles = np.meshgrid(*(_centres(a, *window[a]) for a in range(3)), indexing="ij")
    relative = np.stack([m - c for m, c in zip(middles, centre, strict=True)], axis=-1)
    x, y, z = np.moveaxis(rotate(ego.rotation, relative), -1, 0)
    cos, sin = np.cos(solids.yaw[index]), np.sin(solids.yaw[index])
    inside = np.abs(cos * x + sin * y) <= half[0]
    inside &= np.abs(cos * y - sin * x) <= half[1]
    inside &= np.abs(z) <= half[2]
    (x0, x1), (y0, y1), (z0, z1) = window
    voxels[x0:x1, y0:y1, z0:z1][inside] = label


def _mark_rays(seen: Array, origin: Array, directions: Array, lengths: Array) -> None:
    """Mark the voxels on rays from ``origin``, in the car's frame.

    Args:
        seen: bool [200, 200, 16].
        origin: float64 [3].
        directions: float32 [n, 3], of any length.
        lengths: float32 [n], how far each ray goes, in lengths of its direction.
    """
    length = np.sqrt(np.square(directions).sum(axis=1))
    # In voxels from here on. A ray ends a little behind what it hits: in the voxel hit.
    ends = lengths * length / np.float32(VOXEL) + np.float32(_MARGIN / VOXEL)
    unit = (directions / length[:, None]).T
    start = ((origin - np.array(OCCUPANCY_ORIGIN)) / VOXEL).astype(np.float32)
    along, flat = np.float32(0.0), seen.reshape(-1)
    while len(ends):
        reached = np.minimum(along, ends)
        cell = np.zeros(len(ends), dtype=np.int32)
        inside = np.ones(len(ends), dtype=bool)
        for axis, count in enumerate(OCCUPANCY_SHAPE):
            index = np.floor(start[axis] + unit[axis] * reached).astype(np.int32)
            inside &= (index >= 0) & (index < count)
            cell = cell * count + index
        flat[cell[inside]] = True
        going = inside & (along < ends)  # every sensor is inside: a ray that leaves is gone
        unit, ends = unit[:, going], ends[going]
        along += np.float32(_STEP)
