"""A frame from above as SVG in metres, the car in the middle and looking up."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from bevquant.data.frame import Array, Boxes
from bevquant.report.compare import Comparison
from bevquant.report.scene import FramePicture

_RINGS = (10, 20, 30, 40, 50)
_DIAGONAL = 0.5**0.5
"""Rings are labelled behind and to the right, where roads seldom run."""
_CELL = 0.25
"""Metres; LiDAR points that share a cell are drawn once."""
_MOST_POINTS = 6000


def draw_float(picture: FramePicture, change: Comparison) -> Markup:
    """Return the float network's boxes; objects that quantization loses carry their mark."""
    drawn = _outlines(change.float_, "found") + _badges({"L": change.lost}, picture.reach)
    return _scene(picture, change, "float", drawn)


def draw_quantized(picture: FramePicture, change: Comparison) -> Markup:
    """Return the quantized network's boxes, lost objects and new false boxes marked."""
    drawn = (
        _outlines(change.kept, "found")
        + _outlines(change.new_false, "false")
        + _outlines(change.lost, "lost")
        + "".join(_cross(box) for box in change.lost.values.numpy())
        + _badges({"L": change.lost, "N": change.new_false}, picture.reach)
    )
    return _scene(picture, change, picture.quantized_name, drawn)


def corners(box: Array) -> Array:
    """Return x and y of the corners [4, 2]: front left, front right, rear right, rear left."""
    heading = np.array([np.cos(box[6]), np.sin(box[6])])
    ahead, left = heading * box[3] / 2, np.array([-heading[1], heading[0]]) * box[4] / 2
    offsets = np.stack([ahead + left, ahead - left, -ahead - left, left - ahead])
    return np.asarray(box[:2] + offsets)


def _scene(picture: FramePicture, change: Comparison, name: str, drawn: str) -> Markup:
    """Return ``drawn`` over range rings, LiDAR points, annotated objects and the car."""
    reach = picture.reach
    rings = "".join(
        f'<circle r="{radius}"/>'
        f'<text x="{radius * _DIAGONAL:.2f}" y="{radius * _DIAGONAL:.2f}">{radius} m</text>'
        for radius in _RINGS
        if radius < reach
    )
    return Markup(
        f'<svg class="bird" viewBox="{-reach} {-reach} {2 * reach} {2 * reach}" role="img" '
        f'aria-label="{escape(picture.title)}, {escape(name)}, seen from above">'
        f'<g class="rings">{rings}</g>'
        f'<path class="points" transform="scale({_CELL} {-_CELL})" '
        f'd="{_dots(picture.points, reach)}"/>'
        f"{_outlines(change.truth, 'truth')}"
        '<path class="ego" d="M0 -2.6L1 -1.2V2.2H-1V-1.2Z"/>'
        f"{drawn}</svg>"
    )


def _dots(points: Array, reach: float) -> str:
    """Return one dot per occupied cell as a path in cells, each relative to the one before."""
    points = points[:, :2]
    near = points[(np.abs(points) < reach).all(axis=1)]
    cells = np.unique(np.round(near / _CELL).astype(int), axis=0)
    cells = cells[:: 1 + len(cells) // _MOST_POINTS]
    steps = np.diff(cells, axis=0, prepend=[[0, 0]])
    return "".join(f"m{x} {y}h0" for x, y in steps)


def _outlines(boxes: Boxes, kind: str) -> str:
    """Return boxes as one path, each with a line from its centre to its front."""
    drawn = []
    for box in boxes.values.numpy():
        outline = corners(box)
        front = outline[:2].mean(axis=0)
        ring = "L".join(f"{x:.2f} {-y:.2f}" for x, y in outline)
        drawn.append(f"M{ring}ZM{box[0]:.2f} {-box[1]:.2f}L{front[0]:.2f} {-front[1]:.2f}")
    return f'<path class="{kind}" d="{"".join(drawn)}"/>' if drawn else ""


def _cross(box: Array) -> str:
    """Return a cross on a lost object, so that colour is not its only mark."""
    x, y, arm = box[0], -box[1], 1.4
    return (
        f'<path class="cross" d="M{x - arm:.2f} {y - arm:.2f}l{2 * arm} {2 * arm}'
        f'M{x + arm:.2f} {y - arm:.2f}l{-2 * arm} {2 * arm}"/>'
    )


def _badges(marked: Mapping[str, Boxes], reach: float) -> str:
    """Return a label per box, lost (L1, L2...) or new false (N1...), tied to it by a line."""
    centres = [
        (letter, number, np.array([box[0], -box[1]]))
        for letter, boxes in marked.items()
        for number, box in enumerate(boxes.values.numpy(), 1)
    ]
    places = _places([centre for _, _, centre in centres], reach - 3)
    return "".join(
        f'<g class="badge {"lost" if letter == "L" else "false"}">'
        f'<line x1="{x:.2f}" y1="{y:.2f}" x2="{left:.2f}" y2="{top:.2f}"/>'
        f'<rect x="{left - 2.9:.2f}" y="{top - 2:.2f}" width="5.8" height="4" rx="1.4"/>'
        f'<text x="{left:.2f}" y="{top + 1.15:.2f}">{letter}{number}</text></g>'
        for (letter, number, (x, y)), (left, top) in zip(centres, places, strict=True)
    )


def _places(centres: Sequence[Array], edge: float) -> list[Array]:
    """Return for each object a nearby place for its label, clear of the others if it can be.

    The first choice is the side away from the car; then around the object, then farther off.
    """
    taken = list(centres)
    places: list[Array] = []
    for x, y in centres:
        outward = np.arctan2(y, x)
        options = [
            np.clip((x + far * np.cos(turn), y + far * np.sin(turn)), -edge, edge)
            for far in (5.5, 9.0, 12.5)
            for turn in outward + np.deg2rad((0, 45, -45, 90, -90, 135, -135))
        ]
        free = (p for p in options if all((np.abs(p - t) > (6.2, 4.4)).any() for t in taken))
        places.append(next(free, options[0]))
        taken.append(places[-1])
    return places
