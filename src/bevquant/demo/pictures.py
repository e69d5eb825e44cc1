"""The few frames that the report shows, and from which score a box counts as sure."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from bevquant.data.frame import CAMERAS, Boxes, Frame
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.evaluate import Prediction
from bevquant.metrics.matching import match
from bevquant.report.compare import compare
from bevquant.report.scene import CameraView, FramePicture

READING_ORDER = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
SCORES = tuple(0.05 * step for step in range(1, 13))
"""Candidates for the least score of a sure box."""

REACH = 44.8
"""Metres that the small network sees to each side."""

JPEG_QUALITY = 80


def best_score(predictions: Sequence[Prediction], truths: Mapping[str, Boxes]) -> float:
    """Return the least score at which the predictions have the highest F1 over all frames."""

    def f1(score: float) -> float:
        found = lost = false = 0
        for token, boxes in predictions:
            matches = match(boxes, truths[token], minimum_score=score)
            found += len(matches.found)
            lost += len(matches.lost)
            false += len(matches.false)
        return 2 * found / max(2 * found + lost + false, 1)

    return max(SCORES, key=f1)


def choose(
    dataset: NuScenesDataset,
    float_: Sequence[Prediction],
    quantized: Sequence[Prediction],
    truths: Mapping[str, Boxes],
    min_score: float,
) -> list[int]:
    """Return, for each weather of the data, the index of the frame that lost most objects."""
    worst: dict[str, tuple[int, int]] = {}
    for index, ((token, before), (_, after)) in enumerate(zip(float_, quantized, strict=True)):
        change = compare(truths[token], before, after, min_score, REACH)
        weather = describe(dataset, token).split(",")[0]
        lost = len(change.lost)
        if weather not in worst or lost > worst[weather][0]:
            worst[weather] = (lost, index)
    return [index for _, index in worst.values()]


def picture(
    dataset: NuScenesDataset,
    index: int,
    float_: Boxes,
    quantized: Boxes,
    quantized_name: str,
    min_score: float,
) -> FramePicture:
    """Return the frame at ``index`` as both networks saw it."""
    frame = dataset.frame(index)
    name = dataset.devkit.get("scene", dataset.devkit.get("sample", frame.token)["scene_token"])
    return FramePicture(
        title=f"{name['name']}: {describe(dataset, frame.token)}",
        points=frame.points[frame.points[:, 4] == 0][:, :2],
        cameras=tuple(_view(frame, CAMERAS.index(camera)) for camera in READING_ORDER),
        truth=seen(frame),
        float_=float_,
        quantized=quantized,
        quantized_name=quantized_name,
        min_score=min_score,
        reach=REACH,
    )


def describe(dataset: NuScenesDataset, token: str) -> str:
    """Return the description of the scene that a sample belongs to."""
    sample = dataset.devkit.get("sample", token)
    return str(dataset.devkit.get("scene", sample["scene_token"])["description"])


def seen(frame: Frame) -> Boxes:
    """Return the annotated boxes with at least one LiDAR point, those that are evaluated."""
    assert frame.boxes is not None
    assert frame.boxes_points is not None
    kept = torch.from_numpy(frame.boxes_points > 0)
    return Boxes(frame.boxes.values[kept], frame.boxes.labels[kept])


def _view(frame: Frame, camera: int) -> CameraView:
    image = frame.images[camera]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = frame.intrinsics[camera]
    return CameraView(
        name=CAMERAS[camera].removeprefix("CAM_").replace("_", " ").lower(),
        jpeg=buffer.getvalue(),
        size=(image.shape[1], image.shape[0]),
        lidar2image=intrinsics @ frame.lidar2camera[camera],
    )
