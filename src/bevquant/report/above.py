"""What a dense network makes of a frame, beside the truth, from above; the car looks up."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bevquant.data.frame import Array
from bevquant.data.labels import FREE, MAP_CLASSES, OCCUPANCY_CLASSES
from bevquant.files import atomic_path

MAP_COLORS = {
    "drivable_area": "#b9bec6",
    "walkway": "#e3c79f",
    "carpark_area": "#8fb3d9",
    "ped_crossing": "#f2a33c",
    "stop_line": "#d1345b",
    "divider": "#3c3f46",
}
"""In the order of painting: the last one covers the others."""

VOXEL_COLORS = dict(
    zip(
        OCCUPANCY_CLASSES,
        (
            *("#000000", "#7a4d2b", "#e377c2", "#ff7f0e", "#d62728", "#bcbd22", "#9467bd"),
            *("#1f4fd8", "#ffb000", "#17becf", "#8c1d40", "#b9bec6", "#8d99ae", "#e3c79f"),
            *("#cfe3b4", "#8c8c8c", "#2a7f3a", "#ffffff"),
        ),
        strict=True,
    )
)

_UNSEEN, _GROUND = "#f3f3f5", "#ffffff"
_WRONG = "#d62728"


def draw_map(truth: Array, found: Array, reach: float, path: Path) -> None:
    """Write a PNG of the true map, the predicted one, and the cells where they differ.

    Args:
        truth: bool [6, X, Y].
        found: bool [6, X, Y].
        reach: metres from the car to the edge.
        path: of the PNG.

    Raises:
        BevquantError: ``path`` cannot be written.
    """
    # x of the LiDAR runs to the right of the car, y ahead: rows of a picture are y.
    truth, found = truth.swapaxes(1, 2), found.swapaxes(1, 2)
    wrong = _plain(truth.shape[1:], _GROUND)
    wrong[(truth != found).any(axis=0)] = to_rgb(_WRONG)
    _draw([_painted(truth), _painted(found), wrong], reach, MAP_COLORS, path)


def draw_voxels(truth: Array, found: Array, seen: Array, reach: float, path: Path) -> None:
    """Write a PNG of the highest true voxels, of the predicted ones, and where they differ.

    Args:
        truth: integer [X, Y, Z], classes of the voxels that a camera sees.
        found: the same, as predicted.
        seen: bool [X, Y, Z], which voxels are shown.
        reach: metres from the car to the edge.
        path: of the PNG.

    Raises:
        BevquantError: ``path`` cannot be written.
    """
    tops = [_turned(_highest(classes, seen)) for classes in (truth, found)]
    known = _turned(seen.any(axis=2))
    palette = np.array([to_rgb(VOXEL_COLORS[name]) for name in OCCUPANCY_CLASSES])
    pictures = [np.where(known[..., None], palette[top], to_rgb(_UNSEEN)) for top in tops]
    wrong = np.where(known[..., None], to_rgb(_GROUND), to_rgb(_UNSEEN))
    wrong[known & (tops[0] != tops[1])] = to_rgb(_WRONG)
    present = {OCCUPANCY_CLASSES[int(c)] for top in tops for c in np.unique(top)} - {"free"}
    colors = {name: VOXEL_COLORS[name] for name in OCCUPANCY_CLASSES if name in present}
    _draw([*pictures, wrong], reach, colors, path)


def _highest(classes: Array, seen: Array) -> Array:
    """Return the class [X, Y] of the highest seen voxel of each column that is not free."""
    solid = (classes != FREE) & seen
    top = classes.shape[2] - 1 - solid[:, :, ::-1].argmax(axis=2)
    highest = np.take_along_axis(classes, top[..., None], axis=2)[..., 0]
    return np.where(solid.any(axis=2), highest, FREE)


def _turned(columns: Array) -> Array:
    """Return columns [X, Y] of the car's frame (x ahead, y left) as rows of a picture."""
    return columns[:, ::-1]


def _painted(masks: Array) -> Array:
    """Return the classes of a map in their colours: [rows, columns, 3]."""
    picture = _plain(masks.shape[1:], _GROUND)
    for name, color in MAP_COLORS.items():
        picture[masks[MAP_CLASSES.index(name)]] = to_rgb(color)
    return picture


def _plain(shape: tuple[int, ...], color: str) -> Array:
    return np.tile(np.array(to_rgb(color)), (*shape, 1))


def _draw(pictures: Sequence[Array], reach: float, colors: Mapping[str, str], path: Path) -> None:
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (title, picture) in enumerate(
        zip(("labels", "network", "different"), pictures, strict=True), start=1
    ):
        axes = figure.add_subplot(1, 3, position)
        axes.imshow(picture, origin="lower", extent=(-reach, reach, -reach, reach))
        axes.plot([0, -1, 1, 0], [2.2, -2.2, -2.2, 2.2], color="black", linewidth=1)
        axes.set(title=title, xlabel="metres to the right")
        if position == 1:
            axes.set_ylabel("metres ahead")
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
