"""A frame as its sensors saw it: does everything lie where it should?

LiDAR points and boxes are drawn over the images by the same matrices that the networks get.
Points that miss their object, boxes beside the cars or images in the wrong place show at once
what is wrong with a data set, its calibration or its axes.
"""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bevquant.data.frame import CAMERAS, CLASSES, Array, Frame
from bevquant.files import atomic_path
from bevquant.report.bird import corners
from bevquant.report.camera import edges, in_view

_LAYOUT = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
_REACH = 54.0
"""Metres from the car to the edge of the view from above."""
_NEAR, _FAR = 1.0, 60.0
"""Depths between which the colours run, in metres."""
_COLORS = [colormaps["tab10"](label) for label in range(len(CLASSES))]


def draw_frame(frame: Frame, path: Path) -> None:
    """Write a PNG of the six images and the view from above, with points and true boxes.

    Args:
        frame: with boxes or without.
        path: of the PNG.

    Raises:
        BevquantError: ``path`` cannot be written.
    """
    figure = Figure(figsize=(26, 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 4, width_ratios=(1, 1, 1, 1.15))
    for row, channels in enumerate(_LAYOUT):
        for column, channel in enumerate(channels):
            _draw_camera(figure.add_subplot(grid[row, column]), frame, CAMERAS.index(channel))
    above = figure.add_subplot(grid[:, 3])
    _draw_above(above, frame)
    shown = [] if frame.boxes is None else sorted(set(frame.boxes.labels.tolist()))
    above.legend(
        handles=[Line2D([], [], color=_COLORS[label], label=CLASSES[label]) for label in shown],
        loc="upper left",
        fontsize=9,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def project(points: Array, lidar2image: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return pixels [p, 2] and depths [p] of the points that fall on an image.

    Args:
        points: [P, 3] or wider, x, y, z in the LiDAR frame.
        lidar2image: [4, 4], LiDAR frame -> homogeneous pixels.
        size: width and height of the image.
    """
    homogeneous = points[:, :3] @ lidar2image[:3, :3].T + lidar2image[:3, 3]
    ahead = homogeneous[homogeneous[:, 2] > _NEAR]
    pixels = ahead[:, :2] / ahead[:, 2:]
    seen = ((pixels >= 0) & (pixels < size)).all(axis=1)
    return pixels[seen], ahead[seen, 2]


def _draw_camera(axes: Axes, frame: Frame, camera: int) -> None:
    image = frame.images[camera]
    height, width = image.shape[:2]
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = frame.intrinsics[camera]
    lidar2image = intrinsics @ frame.lidar2camera[camera]
    pixels, depths = project(frame.points, lidar2image, (width, height))
    axes.imshow(image)
    _scatter(axes, pixels, depths, 1.5)
    for box, label in _boxes(frame):
        lines = edges(box, lidar2image)
        if in_view(lines.reshape(-1, 2), (width, height)):
            axes.add_collection(LineCollection(list(lines), colors=[_COLORS[label]], linewidths=1))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], title=CAMERAS[camera])


def _scatter(axes: Axes, places: Array, depths: Array, size: float) -> None:
    """Draw points at ``places`` [p, 2 or more], red when near and blue when far."""
    x, y = places[:, 0], places[:, 1]
    axes.scatter(x, y, size, depths, cmap="turbo_r", vmin=_NEAR, vmax=_FAR, linewidths=0)


def _draw_above(axes: Axes, frame: Frame) -> None:
    _scatter(axes, frame.points, np.linalg.norm(frame.points[:, :2], axis=1), 0.6)
    for box, label in _boxes(frame):
        outline = corners(box)
        front = outline[:2].mean(axis=0)
        axes.plot(*np.append(outline, outline[:1], axis=0).T, color=_COLORS[label], linewidth=1.2)
        axes.plot(*np.stack([box[:2], front]).T, color=_COLORS[label], linewidth=1.2)
    axes.plot(0, 0, marker="^", color="black")
    axes.set(
        xlim=(-_REACH, _REACH),
        ylim=(-_REACH, _REACH),
        aspect="equal",
        xlabel="x: to the right, m",
        ylabel="y: ahead, m",
        title=f"{frame.token}: {len(frame.points)} points, {len(_boxes(frame))} boxes",
    )


def _boxes(frame: Frame) -> list[tuple[Array, int]]:
    if frame.boxes is None:
        return []
    return list(zip(frame.boxes.values.numpy(), frame.boxes.labels.tolist(), strict=True))
