from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import Box, LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box, transform_matrix, view_points
from PIL import Image
from pyquaternion import Quaternion
from shapely.geometry import MultiPoint, Polygon

from bevquant.data.frame import CAMERAS
from bevquant.data.world import VERSION, WorldSettings
from bevquant.data.world.geometry import corners
from bevquant.data.world.scene import Scene, Weather, make_scene


@pytest.fixture(scope="module")
def devkit(tiny_world: Path) -> NuScenes:
    return NuScenes(VERSION, str(tiny_world), verbose=False)


@pytest.fixture(scope="module")
def scenes(tiny_world: Path) -> list[Scene]:
    text = (tiny_world / VERSION / "settings.json").read_text()
    settings = WorldSettings.model_validate_json(text)
    return [make_scene(settings, index) for index in range(settings.scenes)]


def read_points(devkit: NuScenes, data_token: str) -> np.ndarray:
    return LidarPointCloud.from_file(devkit.get_sample_data_path(data_token)).points


def to_global(devkit: NuScenes, data_token: str) -> np.ndarray:
    data = devkit.get("sample_data", data_token)
    sensor = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
    pose = devkit.get("ego_pose", data["ego_pose_token"])
    ego, car = (
        transform_matrix(record["translation"], Quaternion(record["rotation"]))
        for record in (pose, sensor)
    )
    return np.asarray(ego @ car)


def key_boxes(devkit: NuScenes) -> Iterator[tuple[dict, Box, np.ndarray]]:
    for sample in devkit.sample:
        token = sample["data"]["LIDAR_TOP"]
        _, boxes, _ = devkit.get_sample_data(token)
        points = read_points(devkit, token)
        for box in boxes:
            yield sample, box, points


def test_point_files_hold_intensity_and_ring(devkit: NuScenes) -> None:
    path = devkit.get_sample_data_path(devkit.sample[0]["data"]["LIDAR_TOP"])
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 5)
    assert len(points) > 5000
    assert points[:, 3].min() >= 0
    assert points[:, 3].max() <= 255
    assert set(np.unique(points[:, 4])) <= set(range(32))
    elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    assert elevation == pytest.approx(-30.67 + points[:, 4] * (10.67 + 30.67) / 31, abs=0.05)


def test_point_counts_are_the_devkits(devkit: NuScenes) -> None:
    for _, box, points in key_boxes(devkit):
        annotation = devkit.get("sample_annotation", box.token)
        assert annotation["num_lidar_pts"] == points_in_box(box, points[:3]).sum()


def test_every_return_lies_on_something(devkit: NuScenes, scenes: list[Scene]) -> None:
    """Distance of each point to the nearest box face or ground, by brute force."""
    for data in devkit.sample_data:
        if data["fileformat"] != "pcd":
            continue
        scene_record = devkit.get(
            "scene", devkit.get("sample", data["sample_token"])["scene_token"]
        )
        index = devkit.scene.index(scene_record)
        start = devkit.get("sample", scene_record["first_sample_token"])["timestamp"]
        scene, time = scenes[index], (data["timestamp"] - start) / 1e6
        points = read_points(devkit, data["token"])[:3, ::25].astype(np.float64)
        matrix = to_global(devkit, data["token"])
        points = (matrix[:3, :3] @ points + matrix[:3, 3:]).T
        nearest = np.abs(points[:, 2] - scene.plane.height(points[:, 0], points[:, 1]))
        solids = scene.solids(time)
        for centre, half, yaw in zip(solids.centre, solids.half, solids.yaw, strict=True):
            x, y, z = (points - centre).T
            local = np.stack(
                [np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x, z], axis=1
            )
            beyond = np.abs(local) - half
            outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
            inside = -np.minimum(beyond.max(axis=1), 0)
            np.minimum(nearest, outside + inside, out=nearest)
        assert scene.weather is not Weather.RAIN
        assert np.quantile(nearest, 0.99) < 0.05
        assert nearest.max() < 0.08


def test_points_of_a_box_fall_into_its_image(devkit: NuScenes) -> None:
    checked = 0
    for sample, box, points in key_boxes(devkit):
        inside = points_in_box(box, points[:3], wlh_factor=0.98)
        spots = np.vstack([points[:3, inside], np.ones(inside.sum())])
        spots = to_global(devkit, sample["data"]["LIDAR_TOP"]) @ spots
        for camera in CAMERAS:
            token = sample["data"][camera]
            _, seen, matrix = devkit.get_sample_data(token, selected_anntokens=[box.token])
            if not seen or seen[0].corners()[2].min() < 0.5 or not inside.any():
                continue
            outline = view_points(seen[0].corners(), matrix, normalize=True)[:2]
            local = np.linalg.inv(to_global(devkit, token)) @ spots
            pixels = view_points(local[:3], matrix, normalize=True)[:2]
            hull = MultiPoint(outline.T).convex_hull
            assert hull.buffer(0.1).contains(MultiPoint(pixels.T))
            checked += 1
    assert checked > 30


def test_lidar_and_camera_see_the_same_cones(devkit: NuScenes, scenes: list[Scene]) -> None:
    """By day the pixels under a cone's LiDAR points are orange or white, not grey."""
    orange = total = 0
    for sample, box, points in key_boxes(devkit):
        scene = devkit.scene.index(devkit.get("scene", sample["scene_token"]))
        visible = devkit.get("sample_annotation", box.token)["visibility_token"] == "4"
        if scenes[scene].weather is not Weather.DAY or "cone" not in box.name or not visible:
            continue
        inside = points_in_box(box, points[:3], wlh_factor=0.95)
        spots = np.vstack([points[:3, inside], np.ones(inside.sum())])
        spots = to_global(devkit, sample["data"]["LIDAR_TOP"]) @ spots
        for camera in CAMERAS:
            token = sample["data"][camera]
            path, _, matrix = devkit.get_sample_data(token)
            image = np.asarray(Image.open(path)).astype(int)
            local = np.linalg.inv(to_global(devkit, token)) @ spots
            u, v = np.rint(view_points(local[:3], matrix, normalize=True)[:2]).astype(int)
            ok = (local[2] > 1) & (u >= 0) & (v >= 0) & (u < image.shape[1]) & (v < image.shape[0])
            red, _, blue = image[v[ok], u[ok]].T
            orange += ((red - blue > 60) | (blue > 160)).sum()
            total += ok.sum()
    assert total > 10
    assert orange / total > 0.7


def test_nothing_stands_inside_anything_else(scenes: list[Scene]) -> None:
    for scene in scenes:
        for time in (0.0, 0.5):
            car, heading = scene.block.ego.at(np.array(time))
            outlines = [(car, (4.6, 1.9), float(heading))]
            for actor in scene.actors:
                centre, yaw = actor.pose(time, scene.plane)
                outlines.append((centre[:2], actor.size[:2], yaw))
            polygons = []
            for centre, size, yaw in outlines:
                box = corners(
                    np.array([[*centre, 0.0]]), np.array([[*size, 0.0]]) / 2, np.array([yaw])
                )
                polygons.append(Polygon(box[0, [0, 2, 6, 4], :2]))
            for i, one in enumerate(polygons):
                assert not any(one.intersects(other) for other in polygons[:i])


def test_every_scene_has_every_class_to_see(devkit: NuScenes) -> None:
    for scene in devkit.scene:
        sample = devkit.get("sample", scene["first_sample_token"])
        seen = {
            a["category_name"]
            for a in (devkit.get("sample_annotation", token) for token in sample["anns"])
            if a["num_lidar_pts"] > 0
        }
        assert len(seen) >= 9
