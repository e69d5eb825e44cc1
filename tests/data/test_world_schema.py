import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes

from bevquant.data.world import VERSION, WorldSettings
from bevquant.data.world.recording import scene_name
from bevquant.data.world.scene import make_scene

mpl.use("Agg")

GENUINE_FIELDS = {
    "attribute": "token name description",
    "calibrated_sensor": "token sensor_token translation rotation camera_intrinsic",
    "category": "token name description index",
    "ego_pose": "token timestamp rotation translation",
    "instance": (
        "token category_token nbr_annotations first_annotation_token last_annotation_token"
    ),
    "log": "token logfile vehicle date_captured location",
    "map": "category token filename log_tokens",
    "sample": "token timestamp prev next scene_token",
    "sample_annotation": (
        "token sample_token instance_token visibility_token attribute_tokens translation size "
        "rotation prev next num_lidar_pts num_radar_pts"
    ),
    "sample_data": (
        "token sample_token ego_pose_token calibrated_sensor_token timestamp fileformat "
        "is_key_frame height width filename prev next"
    ),
    "scene": ("token log_token nbr_samples first_sample_token last_sample_token name description"),
    "sensor": "token channel modality",
    "visibility": "token level description",
}


@pytest.fixture(scope="module")
def devkit(tiny_world: Path) -> NuScenes:
    return NuScenes(VERSION, str(tiny_world), verbose=False)


@pytest.fixture(scope="module")
def settings(tiny_world: Path) -> WorldSettings:
    return WorldSettings.model_validate_json((tiny_world / VERSION / "settings.json").read_text())


@pytest.mark.parametrize("table", sorted(GENUINE_FIELDS))
def test_records_have_the_genuine_fields(tiny_world: Path, table: str) -> None:
    records = json.loads((tiny_world / VERSION / f"{table}.json").read_text())
    assert records
    for record in records:
        assert list(record) == GENUINE_FIELDS[table].split()
    assert len({record["token"] for record in records}) == len(records)


def test_every_class_has_a_detection_name_and_known_attributes(devkit: NuScenes) -> None:
    for annotation in devkit.sample_annotation:
        name = category_to_detection_name(annotation["category_name"])
        attributes = [devkit.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
        assert len(attributes) == (0 if name in ("barrier", "traffic_cone") else 1)


def test_chains_run_forward_in_time(devkit: NuScenes, settings: WorldSettings) -> None:
    for scene in devkit.scene:
        first = devkit.get("sample", scene["first_sample_token"])
        for channel, token in first["data"].items():
            data = devkit.get("sample_data", token)
            while data["prev"]:
                data = devkit.get("sample_data", data["prev"])
            times = [data["timestamp"]]
            while data["next"]:
                data = devkit.get("sample_data", data["next"])
                times.append(data["timestamp"])
            sweeps = settings.sweeps + 1 if channel == "LIDAR_TOP" else 1
            assert len(times) == settings.keyframes * sweeps
            steps = np.diff(times) / 1e6
            assert np.allclose(steps, 0.5 / sweeps, atol=1e-5)
    for instance in devkit.instance:
        token, count = instance["first_annotation_token"], 0
        while token:
            count, last = count + 1, token
            token = devkit.get("sample_annotation", token)["next"]
        assert (count, last) == (instance["nbr_annotations"], instance["last_annotation_token"])


def test_the_devkit_renders_samples_and_annotations(devkit: NuScenes, tmp_path: Path) -> None:
    sample = devkit.sample[0]
    devkit.render_sample(sample["token"], out_path=str(tmp_path / "sample.png"), verbose=False)
    seen = next(a for a in devkit.sample_annotation if a["visibility_token"] == "4")
    devkit.render_annotation(seen["token"], out_path=str(tmp_path / "annotation.png"))
    devkit.render_pointcloud_in_image(
        sample["token"], out_path=str(tmp_path / "points.png"), verbose=False
    )
    assert len(list(tmp_path.iterdir())) == 3


def test_the_car_drives_on_the_map_mask(devkit: NuScenes) -> None:
    for pose in devkit.ego_pose:
        scene = next(
            devkit.get("scene", devkit.get("sample", d["sample_token"])["scene_token"])
            for d in devkit.sample_data
            if d["ego_pose_token"] == pose["token"]
        )
        log = devkit.get("log", scene["log_token"])
        mask = devkit.get("map", log["map_token"])["mask"]
        assert mask.is_on_mask(*pose["translation"][:2])


def test_velocity_is_the_speed_along_the_track(devkit: NuScenes, settings: WorldSettings) -> None:
    moving = 0
    for index, scene in enumerate(devkit.scene):
        assert scene["name"] == scene_name(settings, index)
        made = make_scene(settings, index)
        sample = devkit.get("sample", scene["first_sample_token"])
        for token in sample["anns"]:
            place = devkit.get("sample_annotation", token)["translation"]
            actor = min(
                made.actors,
                key=lambda a: float(np.abs(a.pose(0.0, made.plane)[0] - place).sum()),
            )
            velocity = devkit.box_velocity(token)
            if np.isnan(velocity).any():
                continue
            if actor.route.turn == 0.0:
                assert np.hypot(*velocity[:2]) == pytest.approx(actor.route.speed, abs=1e-6)
            moving += actor.route.speed > 0
    assert moving > 5


def test_ground_truth_scores_full_marks_in_the_devkits_evaluation(
    devkit: NuScenes, tmp_path: Path
) -> None:
    scenes = json.loads((Path(devkit.table_root) / "splits.json").read_text())["world_val"]
    results: dict[str, list[dict[str, object]]] = {}
    for sample in devkit.sample:
        if devkit.get("scene", sample["scene_token"])["name"] not in scenes:
            continue
        results[sample["token"]] = [
            {
                "sample_token": sample["token"],
                "translation": a["translation"],
                "size": a["size"],
                "rotation": a["rotation"],
                "velocity": np.nan_to_num(devkit.box_velocity(a["token"])[:2]).tolist(),
                "detection_name": category_to_detection_name(a["category_name"]),
                "detection_score": 0.5,
                "attribute_name": (
                    devkit.get("attribute", a["attribute_tokens"][0])["name"]
                    if a["attribute_tokens"]
                    else ""
                ),
            }
            for a in (devkit.get("sample_annotation", token) for token in sample["anns"])
            if a["num_lidar_pts"] > 0
        ]
    meta = {
        f"use_{s}": s in ("camera", "lidar")
        for s in ("camera", "lidar", "radar", "map", "external")
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"meta": meta, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(
        devkit, config, str(file), "world_val", str(tmp_path / "out"), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    present = {box.detection_name for box in evaluation.gt_boxes.all}
    assert len(present) >= 8
    for name in present:
        assert metrics.mean_dist_aps[name] == pytest.approx(1.0)
