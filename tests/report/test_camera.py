import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from bevquant.data.frame import Boxes
from bevquant.report.camera import draw_camera
from bevquant.report.scene import FramePicture


def paths(picture: FramePicture, name: str) -> list[ElementTree.Element]:
    view = next(view for view in picture.cameras if view.name == name)
    return ElementTree.fromstring(draw_camera(view, picture.compare())).findall("path")


def lone(picture: FramePicture, x: float, y: float) -> FramePicture:
    """Return the picture with one object, found by both networks."""
    values = torch.tensor([[x, y, 0.0, 4.0, 2.0, 1.6, 0.3, 0.0, 0.0]])
    box = Boxes(values, torch.tensor([0]), torch.tensor([0.9]))
    return dataclasses.replace(picture, truth=box, float_=box, quantized=box)


def test_a_box_ahead_is_drawn_where_its_corners_project(
    pictures: tuple[FramePicture, ...],
) -> None:
    picture = lone(pictures[0], 1.0, 15.0)
    (path,) = paths(picture, "front")
    drawn = {(int(x), int(y)) for x, y in re.findall(r"[ML](-?\d+) (-?\d+)", path.get("d", ""))}
    expected = set()
    for along, across, up in np.ndindex(2, 2, 2):
        ahead, left, height = 4 * along - 2, 2 * across - 1, 1.6 * up - 0.8
        x = 1.0 + ahead * np.cos(0.3) - left * np.sin(0.3)
        y = 15.0 + ahead * np.sin(0.3) + left * np.cos(0.3)
        focal = 0.75 * 352
        expected.add((round(176 + focal * x / y), round(99 - focal * height / y)))
    assert drawn == expected


def test_a_box_behind_is_not_drawn(pictures: tuple[FramePicture, ...]) -> None:
    picture = lone(pictures[0], 1.0, 15.0)
    assert not paths(picture, "back")


def test_a_box_around_the_camera_is_cut_off(pictures: tuple[FramePicture, ...]) -> None:
    picture = lone(pictures[0], 0.5, 1.0)
    (path,) = paths(picture, "front")
    numbers = np.array(re.findall(r"-?\d+", path.get("d", "")), dtype=int)
    assert np.abs(numbers).max() < 352 * 10


@pytest.mark.parametrize("kind", ["lost", "false"])
def test_lost_and_false_objects_are_labelled(pictures: tuple[FramePicture, ...], kind: str) -> None:
    picture = pictures[0]
    change = picture.compare()
    drawn = "".join(draw_camera(view, change) for view in picture.cameras)
    labels = set(re.findall(rf'<text class="{kind}"[^>]*>(\w+)<', drawn))
    assert labels == ({"L1", "L2", "L3"} if kind == "lost" else {"N1", "N2"})
