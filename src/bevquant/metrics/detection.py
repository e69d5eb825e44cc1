"""The nuScenes detection metrics, computed by the official devkit's own code."""

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes
from scipy.spatial.transform import Rotation

from bevquant.data.frame import CLASSES, Array, Boxes
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.errors import BevquantError

CONFIG = config_factory("detection_cvpr_2019")
"""The benchmark's own settings: class ranges, distance thresholds, 500 boxes a sample."""

MOVING_SPEED = 0.2
"""Objects faster than this, in m/s, get the attribute of moving ones."""

MOVING_ATTRIBUTE = {
    "car": "vehicle.moving",
    "truck": "vehicle.moving",
    "construction_vehicle": "vehicle.moving",
    "bus": "vehicle.moving",
    "trailer": "vehicle.moving",
    "barrier": "",
    "motorcycle": "cycle.with_rider",
    "bicycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
    "traffic_cone": "",
}

RESTING_ATTRIBUTE = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "bus": "vehicle.stopped",
    "trailer": "vehicle.parked",
    "barrier": "",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
    "traffic_cone": "",
}

TP_ERRORS = {
    "ATE": "trans_err",
    "ASE": "scale_err",
    "AOE": "orient_err",
    "AVE": "vel_err",
    "AAE": "attr_err",
}
"""Short names of the true-positive errors and the devkit's."""


@dataclass(frozen=True)
class DetectionMetrics:
    """nuScenes detection metrics of one model on one split.

    Attributes:
        NDS: nuScenes detection score, 0..1.
        mAP: mean average precision over classes and the distances 0.5, 1, 2 and 4 m, 0..1.
        mATE: mean translation error of true positives, in metres.
        mASE: mean scale error, 1 - IoU of aligned boxes, 0..1.
        mAOE: mean orientation error, in radians.
        mAVE: mean velocity error, in m/s.
        mAAE: mean attribute error, 1 - accuracy, 0..1.
        per_class: class name to ``AP`` and the errors ``ATE``, ``ASE``, ``AOE``, ``AVE``,
            ``AAE``; NaN where the benchmark defines none (the velocity of a cone).
        frames: how many samples were evaluated.
    """

    NDS: float
    mAP: float
    mATE: float
    mASE: float
    mAOE: float
    mAVE: float
    mAAE: float
    per_class: Mapping[str, Mapping[str, float]]
    frames: int

    def summary(self) -> dict[str, float]:
        """Return the score and the means over classes."""
        names = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file; an undefined error is ``None``."""
        values = asdict(self)
        values["per_class"] = {
            name: {key: None if math.isnan(value) else value for key, value in row.items()}
            for name, row in self.per_class.items()
        }
        return values


def submission(
    token: str, boxes: Boxes, lidar2ego: Array, ego2global: Array
) -> list[dict[str, Any]]:
    """Turn one sample's boxes into entries of a nuScenes result file.

    Attributes follow from speed and class, and boxes beyond their class' evaluation range
    are left out, as in mmdetection3d's ``NuScenesMetric``. So are boxes that can match
    nothing and that the devkit refuses: those with a NaN, an infinity or a zero size,
    as a network quantized too hard makes them. Of more than 500 boxes the best remain.

    Args:
        token: the sample's token.
        boxes: n boxes in the LiDAR frame; without scores (ground truth) they score 1.
        lidar2ego: float64 [4, 4].
        ego2global: float64 [4, 4] at the time of the LiDAR sweep.
    """
    scores = torch.ones(len(boxes)) if boxes.scores is None else boxes.scores
    values = boxes.values.detach().cpu().numpy().astype(np.float64)
    score = scores.detach().cpu().numpy().astype(np.float64)
    label = boxes.labels.cpu().numpy()

    centres = values[:, :3] @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    reach = np.array([CONFIG.class_range[name] for name in CLASSES])[label]
    usable = np.isfinite(values[:, :7]).all(axis=1) & np.isfinite(score)
    usable &= (values[:, 3:6] > 0).all(axis=1)
    usable &= np.linalg.norm(centres[:, :2], axis=1) <= reach
    kept = np.flatnonzero(usable)
    kept = kept[np.argsort(-score[kept], kind="stable")][: CONFIG.max_boxes_per_sample]
    if not len(kept):
        return []

    values, score, label = values[kept], score[kept], label[kept]
    rotation = ego2global[:3, :3] @ lidar2ego[:3, :3]
    centres = centres[kept] @ ego2global[:3, :3].T + ego2global[:3, 3]
    headings = Rotation.from_matrix(rotation) * Rotation.from_euler("z", values[:, 6:7])
    quaternions = np.roll(headings.as_quat(), 1, axis=1)
    flat = np.concatenate([values[:, 7:9], np.zeros((len(kept), 1))], axis=1)
    velocities = (flat @ rotation.T)[:, :2]
    moving = np.linalg.norm(velocities, axis=1) > MOVING_SPEED
    names = [CLASSES[index] for index in label]
    return [
        {
            "sample_token": token,
            "translation": centres[i].tolist(),
            "size": values[i, [4, 3, 5]].tolist(),
            "rotation": quaternions[i].tolist(),
            "velocity": velocities[i].tolist(),
            "detection_name": name,
            "detection_score": float(score[i]),
            "attribute_name": (MOVING_ATTRIBUTE if moving[i] else RESTING_ATTRIBUTE)[name],
        }
        for i, name in enumerate(names)
    ]


def evaluate_submission(
    dataset: NuScenesDataset, results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> DetectionMetrics:
    """Evaluate a nuScenes submission on exactly the samples of ``dataset``.

    Args:
        dataset: the annotated samples.
        results: sample token to entries, as :func:`submission` makes them, for every
            sample of ``dataset``.

    Raises:
        BevquantError: the data has no annotations, or ``results`` lacks a sample.
    """
    if not dataset.devkit.sample_annotation:
        raise BevquantError(
            f"{dataset.devkit.table_root}: sample_annotation.json is empty, there is nothing "
            "to evaluate against; choose an annotated split"
        )
    missing = set(dataset.tokens) - set(results)
    if missing:
        raise BevquantError(f"results: {len(missing)} samples are missing, one is {min(missing)}")
    entries = {token: results[token] for token in dataset.tokens}
    predictions = EvalBoxes.deserialize(entries, DetectionBox)
    metrics, _ = _SampleEval(dataset.devkit, dataset.tokens, predictions).evaluate()
    aps = metrics.mean_dist_aps
    errors = metrics.tp_errors
    return DetectionMetrics(
        NDS=metrics.nd_score,
        mAP=metrics.mean_ap,
        **{f"m{short}": errors[name] for short, name in TP_ERRORS.items()},
        per_class={
            label: {
                "AP": float(aps[label]),
                **{s: float(metrics.get_label_tp(label, name)) for s, name in TP_ERRORS.items()},
            }
            for label in CLASSES
        },
        frames=len(dataset),
    )


class _SampleEval(DetectionEval):  # type: ignore[misc]
    """The devkit's evaluation of chosen samples.

    Its own constructor knows only named splits and result files; the loading and
    filtering it does are repeated here with its own functions.
    """

    def __init__(self, devkit: NuScenes, tokens: Sequence[str], predictions: EvalBoxes) -> None:
        self.cfg = CONFIG
        self.verbose = False
        # The loader shows a progress bar even when told to be silent.
        with redirect_stderr(io.StringIO()):
            truth = load_gt_of_sample_tokens(devkit, list(tokens), DetectionBox)
        self.gt_boxes = self._filtered(devkit, truth)
        self.pred_boxes = self._filtered(devkit, predictions)

    @staticmethod
    def _filtered(devkit: NuScenes, boxes: EvalBoxes) -> EvalBoxes:
        if not boxes.all:  # the devkit's filter fails when there is no box at all
            return boxes
        return filter_eval_boxes(devkit, add_center_dist(devkit, boxes), CONFIG.class_range)
