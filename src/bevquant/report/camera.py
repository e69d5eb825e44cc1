"""A camera image as SVG with the boxes of found, lost and new false objects on it."""

import base64

import numpy as np
from markupsafe import Markup, escape

from bevquant.data.frame import Array
from bevquant.report.bird import corners
from bevquant.report.compare import Comparison
from bevquant.report.scene import CameraView

_NEAR = 0.5
"""Metres before a camera; nearer parts of a box are cut off."""
_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)


def draw_camera(camera: CameraView, change: Comparison) -> Markup:
    """Return the image with annotated objects found and lost, and new false boxes."""
    width, height = camera.size
    lost, false = change.lost.values.numpy(), change.new_false.values.numpy()
    drawn = [
        *(_box(camera, box, "found", "") for box in change.found.values.numpy()),
        *(_box(camera, box, "false", f"N{number}") for number, box in enumerate(false, 1)),
        *(_box(camera, box, "lost", f"L{number}") for number, box in enumerate(lost, 1)),
    ]
    data = base64.b64encode(camera.jpeg).decode()
    return Markup(
        f'<svg class="camera" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(camera.name)}" font-size="{width / 24:.1f}">'
        f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{data}"/>'
        f"{''.join(drawn)}</svg>"
    )


def edges(box: Array, lidar2image: Array) -> Array:
    """Return the edges of a box as far as they lie before a camera, in pixels [e, 2, 2].

    Args:
        box: x, y, z of the centre, length, width, height, yaw, ... in the LiDAR frame.
        lidar2image: [4, 4], LiDAR frame -> homogeneous pixels.
    """
    levels = np.repeat(box[2] + np.array([-0.5, 0.5]) * box[5], 4)
    solid = np.column_stack([np.tile(corners(box), (2, 1)), levels, np.ones(8)])
    homogeneous = solid @ lidar2image.T
    cut = (_cut(homogeneous[a], homogeneous[b]) for a, b in _EDGES)
    lines = [line for line in cut if line is not None]
    return np.stack(lines) if lines else np.empty((0, 2, 2))


def in_view(pixels: Array, size: tuple[int, int]) -> bool:
    """Tell whether the rectangle around ``pixels`` [n, 2] overlaps an image of ``size``."""
    if not len(pixels):
        return False
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    return bool((high > 0).all() and (low < size).all())


def _box(camera: CameraView, box: Array, kind: str, label: str) -> str:
    """Return the edges of one box, or nothing where it is out of view."""
    lines = edges(box, camera.lidar2image)
    if not in_view(lines.reshape(-1, 2), camera.size):
        return ""
    path = "".join(f"M{a[0]:.0f} {a[1]:.0f}L{b[0]:.0f} {b[1]:.0f}" for a, b in lines)
    if not label:
        return f'<path class="{kind}" d="{path}"/>'
    width, height = camera.size
    corner = lines.reshape(-1, 2).min(axis=0)
    x, y = np.clip(corner, (2, height / 12), (width * 0.92, height - 2))
    return (
        f'<path class="{kind}" d="{path}"/><text class="{kind}" x="{x:.0f}" y="{y:.0f}">'
        f"{label}</text>"
    )


def _cut(a: Array, b: Array) -> Array | None:
    """Return in pixels [2, 2] the part of an edge that lies before the camera."""
    if max(a[2], b[2]) < _NEAR:
        return None
    if min(a[2], b[2]) < _NEAR:
        middle = a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2])
        a, b = (middle, b) if a[2] < _NEAR else (a, middle)
    ends: Array = np.stack([a[:2] / a[2], b[:2] / b[2]])
    return ends
