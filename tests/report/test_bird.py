import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from bevquant.data.frame import Boxes
from bevquant.report.bird import corners, draw_float, draw_quantized
from bevquant.report.scene import FramePicture


@pytest.mark.parametrize("yaw", [0.0, 0.4, 2.0, -3.0])
def test_corners_are_the_devkits(yaw: float) -> None:
    box = np.array([3.0, -8.0, 1.0, 4.5, 1.9, 1.6, yaw])
    rotation = Quaternion(axis=[0, 0, 1], radians=yaw)
    devkit = Box([3.0, -8.0, 1.0], [1.9, 4.5, 1.6], rotation).corners()[:2, [0, 1, 5, 4]].T
    ours = corners(box)
    assert {tuple(c) for c in ours.round(6)} == {tuple(c) for c in devkit.round(6)}
    front = ours[:2].mean(axis=0) - box[:2]
    assert front == pytest.approx(2.25 * np.array([np.cos(yaw), np.sin(yaw)]))


def badges(svg: str) -> dict[str, str]:
    """Return the label of each badge with its kind."""
    root = ElementTree.fromstring(svg)
    groups = [group for group in root.iter("g") if "badge" in group.get("class", "")]
    return {str(group.findtext("text")): str(group.get("class")) for group in groups}


def test_lost_objects_are_marked_by_label_dashes_and_cross(
    pictures: tuple[FramePicture, ...],
) -> None:
    picture = pictures[0]
    change = picture.compare()
    before, after = draw_float(picture, change), draw_quantized(picture, change)
    lost = {f"L{number}": "badge lost" for number in (1, 2, 3)}
    assert badges(before) == lost
    assert badges(after) == lost | {"N1": "badge false", "N2": "badge false"}
    assert after.count('class="cross"') == 3 and 'class="cross"' not in before
    outlines = {path.get("class"): path.get("d", "") for path in ElementTree.fromstring(after)}
    assert outlines["lost"].count("Z") == 3
    assert outlines["false"].count("Z") == 2
    assert outlines["found"].count("Z") == 27
    assert outlines["truth"].count("Z") == 34


def test_dots_are_the_points(pictures: tuple[FramePicture, ...]) -> None:
    picture = pictures[0]
    svg = ElementTree.fromstring(draw_float(picture, picture.compare()))
    path = next(path.get("d", "") for path in svg if path.get("class") == "points")
    steps = [[int(x), int(y)] for x, y in re.findall(r"m(-?\d+) (-?\d+)h0", path)]
    dots = np.cumsum(steps, axis=0) * 0.25
    assert len(dots) > 3000
    distances = np.linalg.norm(dots[::40, None] - picture.points[None], axis=-1).min(axis=1)
    assert distances.max() <= 0.25 / np.sqrt(2) + 1e-6


def test_labels_of_neighbours_do_not_cover_each_other(
    pictures: tuple[FramePicture, ...],
) -> None:
    row = Boxes(
        torch.tensor([[x, 20.0, 0, 2, 1, 1, 0, 0, 0] for x in range(0, 10, 2)]).float(),
        torch.zeros(5, dtype=torch.int64),
    )
    sure = Boxes(row.values, row.labels, torch.full((5,), 0.9))
    none = Boxes(row.values[:0], row.labels[:0], torch.zeros(0))
    picture = dataclasses.replace(pictures[0], truth=row, float_=sure, quantized=none)
    svg = ElementTree.fromstring(draw_quantized(picture, picture.compare()))
    corners = np.array([[float(r.get("x", "")), float(r.get("y", ""))] for r in svg.iter("rect")])
    apart = np.abs(corners[:, None] - corners[None])[~np.eye(5, dtype=bool)]
    assert (apart >= (5.8, 4.0)).any(axis=1).all()
