import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import detection_name_to_rel_attributes
from pyquaternion import Quaternion

from bevquant.data.frame import CLASSES, Boxes, Frame
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.errors import BevquantError
from bevquant.metrics.detection import (
    CONFIG,
    DetectionMetrics,
    evaluate_submission,
    submission,
)

IDENTITY = np.eye(4)
Results = dict[str, list[dict]]


def one_box(label: str, speed: float = 0.0, x: float = 5.0) -> Boxes:
    values = torch.tensor([[x, 0.0, 0.0, 4.0, 2.0, 1.5, 0.3, 0.0, speed]])
    return Boxes(values, torch.tensor([CLASSES.index(label)]), torch.tensor([0.5]))


def annotated(frame: Frame) -> Boxes:
    """The frame's ground truth as the benchmark counts it: boxes that hold a point."""
    assert frame.boxes is not None and frame.boxes_points is not None
    kept = torch.from_numpy(frame.boxes_points > 0)
    return Boxes(frame.boxes.values[kept], frame.boxes.labels[kept])


def oracle(dataset: NuScenesDataset) -> Results:
    frames = [dataset.frame(index) for index in range(len(dataset))]
    return {
        frame.token: submission(frame.token, annotated(frame), frame.lidar2ego, frame.ego2global)
        for frame in frames
    }


def present(dataset: NuScenesDataset) -> set[str]:
    """Classes with a ground-truth box that counts: within range, holding a point."""
    return {entry["detection_name"] for rows in oracle(dataset).values() for entry in rows}


@pytest.fixture(scope="module")
def world(tiny_world: Path) -> NuScenesDataset:
    return NuScenesDataset(tiny_world, "v1.0-world", "world_val", sweeps=0)


@pytest.fixture(scope="module")
def real(real_frame: Path) -> NuScenesDataset:
    return NuScenesDataset(real_frame, "v1.0-frame", "frame", sweeps=0)


@pytest.mark.parametrize("name", ["world", "real"])
def test_ground_truth_as_prediction_is_perfect(name: str, request: pytest.FixtureRequest):
    dataset = request.getfixturevalue(name)
    metrics = evaluate_submission(dataset, oracle(dataset))
    seen = present(dataset)
    assert len(seen) >= 4
    for label in seen:
        row = metrics.per_class[label]
        assert row["AP"] == pytest.approx(1.0)
        assert row["ATE"] < 1e-3
        assert row["ASE"] < 1e-5
        if label != "traffic_cone":
            assert row["AOE"] < 0.01  # the LiDAR is tilted, its boxes are not
        if name == "world" and label not in ("traffic_cone", "barrier"):
            assert row["AVE"] < 0.02 or row["AVE"] == 1.0  # seen once: no velocity, error 1
    assert metrics.mAP == pytest.approx(len(seen) / 10)


def test_the_numbers_are_those_of_the_devkits_own_run(world: NuScenesDataset, tmp_path: Path):
    generator = np.random.default_rng(0)
    results = oracle(world)
    for rows in results.values():
        del rows[::5]
        for entry in rows:
            entry["detection_score"] = float(generator.uniform(0.1, 1))
            entry["translation"][0] += float(generator.normal(0, 0.7))
            entry["velocity"] = generator.normal(size=2).tolist()
    (tmp_path / "results.json").write_text(json.dumps({"meta": {}, "results": results}))
    expected, _ = DetectionEval(
        world.devkit,
        CONFIG,
        str(tmp_path / "results.json"),
        "world_val",
        str(tmp_path / "out"),
        verbose=False,
    ).evaluate()
    metrics = evaluate_submission(world, results)
    assert 0.05 < metrics.mAP < 0.95
    assert expected.nd_score == metrics.NDS
    assert metrics.mAP == expected.mean_ap
    errors = (metrics.mATE, metrics.mASE, metrics.mAOE, metrics.mAVE, metrics.mAAE)
    assert errors == tuple(expected.tp_errors.values())
    assert metrics.frames == len(world)
    for label, ap in expected.mean_dist_aps.items():
        assert metrics.per_class[label]["AP"] == ap


@pytest.mark.parametrize(("shift", "thresholds_met"), [(0.3, 4), (0.75, 3), (1.5, 2)])
@pytest.mark.parametrize("name", ["world", "real"])
def test_shifted_boxes_score_what_the_formula_says(
    name: str, shift: float, thresholds_met: int, request: pytest.FixtureRequest
):
    """A box moved by d is a true positive at the thresholds above d only, with ATE = d."""
    dataset = request.getfixturevalue(name)
    results = oracle(dataset)
    for rows in results.values():
        for entry in rows:
            entry["translation"][2] += 9.0  # height does not count
    towards_the_car = {token: dataset.poses(token)[1][:2, 3] for token in results}
    alone = present(dataset)
    for token, rows in results.items():
        places = np.array([entry["translation"][:2] for entry in rows])
        for i, entry in enumerate(rows):
            same = [j for j, other in enumerate(rows) if j != i and is_same(entry, other)]
            if same and np.linalg.norm(places[same] - places[i], axis=1).min() < 2 * shift + 0.1:
                alone.discard(entry["detection_name"])
            direction = towards_the_car[token] - places[i]
            step = shift * direction / np.linalg.norm(direction)
            entry["translation"][:2] = (places[i] + step).tolist()
    assert alone
    metrics = evaluate_submission(dataset, results)
    for label in alone:
        assert metrics.per_class[label]["AP"] == pytest.approx(thresholds_met / 4)
        assert metrics.per_class[label]["ATE"] == pytest.approx(shift, abs=1e-3)


def is_same(entry: dict, other: dict) -> bool:
    return bool(entry["detection_name"] == other["detection_name"])


def test_a_limited_data_set_is_evaluated_on_its_own_frames(tiny_world: Path):
    first = NuScenesDataset(tiny_world, "v1.0-world", "world_val", sweeps=0, limit=1)
    metrics = evaluate_submission(first, oracle(first))
    assert metrics.frames == 1
    assert metrics.mAP == pytest.approx(len(present(first)) / 10)


def test_no_prediction_at_all_scores_zero(world: NuScenesDataset, capfd: pytest.CaptureFixture):
    metrics = evaluate_submission(world, {token: [] for token in world.tokens})
    assert metrics.mAP == metrics.NDS == 0
    assert metrics.mATE == metrics.mAAE == 1
    captured = capfd.readouterr()
    assert not captured.out and not captured.err


def test_missing_samples_are_named(world: NuScenesDataset):
    with pytest.raises(BevquantError, match=f"1 samples are missing, one is {world.tokens[1]}"):
        evaluate_submission(world, {world.tokens[0]: []})


def test_submission_places_boxes_in_the_world():
    lidar2ego = np.eye(4)
    lidar2ego[:3, :3] = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]  # LiDAR y is the car's x
    lidar2ego[:3, 3] = [1, 0, 2]
    ego2global = np.eye(4)
    ego2global[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # the car drives along global y
    ego2global[:3, 3] = [100, 200, 0]
    values = torch.tensor([[3.0, 10.0, -1.0, 4.0, 2.0, 1.5, math.pi / 2, 0.5, 7.0]])
    boxes = Boxes(values, torch.tensor([0]), torch.tensor([0.25]))
    (entry,) = submission("abc", boxes, lidar2ego, ego2global)
    assert entry["sample_token"] == "abc"
    np.testing.assert_allclose(entry["translation"], [103, 211, 1], atol=1e-5)
    assert entry["size"] == [2.0, 4.0, 1.5]
    heading = Quaternion(entry["rotation"]).rotate([1, 0, 0])
    np.testing.assert_allclose(heading, [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(entry["velocity"], [0.5, 7.0], atol=1e-6)
    assert entry["detection_score"] == 0.25


@pytest.mark.parametrize(
    ("label", "fast", "slow"),
    [
        ("car", "vehicle.moving", "vehicle.parked"),
        ("truck", "vehicle.moving", "vehicle.parked"),
        ("construction_vehicle", "vehicle.moving", "vehicle.parked"),
        ("bus", "vehicle.moving", "vehicle.stopped"),
        ("trailer", "vehicle.moving", "vehicle.parked"),
        ("barrier", "", ""),
        ("motorcycle", "cycle.with_rider", "cycle.without_rider"),
        ("bicycle", "cycle.with_rider", "cycle.without_rider"),
        ("pedestrian", "pedestrian.moving", "pedestrian.standing"),
        ("traffic_cone", "", ""),
    ],
)
def test_attributes_follow_speed_and_class(label: str, fast: str, slow: str):
    for speed, expected in ((0.21, fast), (-0.21, fast), (0.19, slow), (math.nan, slow)):
        (entry,) = submission("t", one_box(label, speed), IDENTITY, IDENTITY)
        assert entry["detection_name"] == label
        assert entry["attribute_name"] == expected
        assert expected in (*detection_name_to_rel_attributes(label), "")


@pytest.mark.parametrize("label", CLASSES)
def test_boxes_beyond_the_range_of_their_class_are_left_out(label: str):
    reach = CONFIG.class_range[label]
    assert submission("t", one_box(label, x=reach - 0.1), IDENTITY, IDENTITY)
    assert not submission("t", one_box(label, x=reach + 0.1), IDENTITY, IDENTITY)


@pytest.mark.parametrize(
    ("column", "value"), [(0, math.nan), (3, math.inf), (4, 0.0), (5, -1.0), (6, math.nan)]
)
def test_boxes_that_can_match_nothing_are_left_out(column: int, value: float):
    boxes = one_box("car")
    boxes.values[0, column] = value
    assert submission("t", boxes, IDENTITY, IDENTITY) == []


def test_the_best_500_boxes_remain():
    values = one_box("car").values.repeat(600, 1)
    scores = torch.rand(600, generator=torch.Generator().manual_seed(0))
    boxes = Boxes(values, torch.zeros(600, dtype=torch.int64), scores)
    kept = [e["detection_score"] for e in submission("t", boxes, IDENTITY, IDENTITY)]
    np.testing.assert_allclose(kept, scores.sort(descending=True).values[:500], rtol=1e-6)


def test_json_has_no_nan():
    rows = {"traffic_cone": {"AP": 0.5, "AOE": math.nan}}
    metrics = DetectionMetrics(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, rows, 8)
    values = json.loads(json.dumps(metrics.to_json(), allow_nan=False))
    assert values["per_class"] == {"traffic_cone": {"AP": 0.5, "AOE": None}}
    assert values["NDS"] == 0.1 and values["frames"] == 8
