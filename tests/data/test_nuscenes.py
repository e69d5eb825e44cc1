import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import BoxVisibility, points_in_box, view_points
from PIL import Image
from scipy.spatial import Delaunay

from bevquant.data.frame import CAMERAS, CLASSES, Frame, lidar2global
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.errors import BevquantError

VERSION = "v1.0-world"


@pytest.fixture(scope="module")
def world(tiny_world: Path) -> NuScenesDataset:
    return NuScenesDataset(tiny_world, VERSION, "world_val", sweeps=2)


@pytest.fixture(scope="module")
def frame(world: NuScenesDataset) -> Frame:
    return world.frame(1)


@pytest.fixture(scope="module")
def real(real_frame: Path) -> NuScenesDataset:
    return NuScenesDataset(real_frame, "v1.0-frame", "frame", sweeps=9)


def sample_of(dataset: NuScenesDataset, frame: Frame) -> dict:
    return dataset.devkit.get("sample", frame.token)


def project(frame: Frame, camera: int, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels [n, 2] and depths [n] of LiDAR-frame points, by the frame's matrices."""
    homogeneous = np.concatenate([xyz, np.ones((len(xyz), 1))], axis=1)
    points = (frame.lidar2camera[camera] @ homogeneous.T)[:3]
    return view_points(points, frame.intrinsics[camera], normalize=True)[:2].T, points[2]


def test_images_are_the_files_in_camera_order(world: NuScenesDataset, frame: Frame):
    sample = sample_of(world, frame)
    for camera, image in zip(CAMERAS, frame.images, strict=True):
        path = world.devkit.get_sample_data_path(sample["data"][camera])
        np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
        assert image.dtype == np.uint8


def test_beam_step_keeps_the_points_of_every_other_ring(tiny_world: Path, frame: Frame):
    halved = NuScenesDataset(tiny_world, VERSION, "world_val", sweeps=0, beam_step=2)
    record = halved.devkit.get(
        "sample_data", halved.devkit.get("sample", frame.token)["data"]["LIDAR_TOP"]
    )
    file = np.fromfile(tiny_world / record["filename"], dtype=np.float32).reshape(-1, 5)
    even = file[np.isin(file[:, 4], range(0, 32, 2))]
    assert 0 < len(even) < len(file)
    np.testing.assert_array_equal(halved.frame(1).points[:, :4], even[:, :4])


@pytest.mark.parametrize("camera", range(6))
def test_points_meet_the_pixels_the_devkit_puts_them_on(
    world: NuScenesDataset, frame: Frame, camera: int
):
    sample = sample_of(world, frame)
    expected, depths, _ = world.devkit.explorer.map_pointcloud_to_image(
        sample["data"]["LIDAR_TOP"], sample["data"][CAMERAS[camera]]
    )
    key = frame.points[frame.points[:, 4] == 0, :3]
    pixels, depth = project(frame, camera, key)
    height, width = frame.images[camera].shape[:2]
    seen = depth > 1.0
    seen &= ((pixels > 1) & (pixels < [width - 1, height - 1])).all(axis=1)
    assert seen.sum() > 100
    np.testing.assert_allclose(pixels[seen], expected[:2].T, atol=2e-2)
    np.testing.assert_allclose(depth[seen], depths, atol=1e-3)


def test_sweeps_are_moved_and_dated_as_the_devkit_does_it(world: NuScenesDataset, frame: Frame):
    cloud, times = LidarPointCloud.from_file_multisweep(
        world.devkit, sample_of(world, frame), "LIDAR_TOP", "LIDAR_TOP", nsweeps=3, min_distance=1
    )
    own = frame.points
    # The devkit takes the car's own points out of the key frame too.
    car = (np.abs(own[:, :2]) < 1).all(axis=1) & (own[:, 4] == 0)
    assert len(np.unique(own[:, 4])) == 3
    np.testing.assert_allclose(own[~car, :4], cloud.points.T, atol=1e-3)
    np.testing.assert_allclose(own[~car, 4], times[0], atol=1e-6)
    assert own.dtype == np.float32


def test_fewer_sweeps_than_asked_for_at_the_start_of_a_scene(tiny_world: Path):
    without = NuScenesDataset(tiny_world, VERSION, "world_val", sweeps=0).frame(0)
    assert (without.points[:, 4] == 0).all()
    many = NuScenesDataset(tiny_world, VERSION, "world_val", sweeps=100)
    assert [len(np.unique(many.frame(i).points[:, 4])) for i in (0, 1)] == [3, 6]


def test_boxes_are_the_devkits_in_the_lidar_frame(world: NuScenesDataset, frame: Frame):
    sample = sample_of(world, frame)
    _, boxes, _ = world.devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
    boxes = [box for box in boxes if category_to_detection_name(box.name)]
    assert frame.boxes is not None and frame.boxes_points is not None
    assert len(boxes) == len(frame.boxes) == len(frame.boxes_points) > 5
    rotation = lidar2global(frame)[:3, :3]
    for box, row, label in zip(boxes, frame.boxes.values, frame.boxes.labels, strict=True):
        assert CLASSES[label] == category_to_detection_name(box.name)
        np.testing.assert_allclose(row[:3], box.center, atol=1e-4)
        np.testing.assert_allclose(row[[4, 3, 5]], box.wlh, rtol=1e-6)
        turn = float(row[6]) - quaternion_yaw(box.orientation)
        assert abs(np.angle(np.exp(1j * turn))) < 0.01  # the LiDAR is tilted
        velocity = world.devkit.box_velocity(box.token)
        velocity[2] = 0
        np.testing.assert_allclose(row[7:], (rotation.T @ velocity)[:2], atol=1e-5)


def test_boxes_points_count_the_points_of_the_key_frame(world: NuScenesDataset, frame: Frame):
    _, boxes, _ = world.devkit.get_sample_data(sample_of(world, frame)["data"]["LIDAR_TOP"])
    key = frame.points[frame.points[:, 4] == 0, :3]
    counts = [
        points_in_box(box, key.T).sum() for box in boxes if category_to_detection_name(box.name)
    ]
    assert frame.boxes_points is not None
    np.testing.assert_allclose(frame.boxes_points, counts, atol=3)  # points on a face


def test_poses_are_those_of_the_frame(world: NuScenesDataset, frame: Frame):
    lidar2ego, ego2global = world.poses(frame.token)
    np.testing.assert_array_equal(lidar2ego, frame.lidar2ego)
    np.testing.assert_array_equal(ego2global, frame.ego2global)


def test_limit_keeps_the_first_frames(tiny_world: Path, world: NuScenesDataset):
    first = NuScenesDataset(tiny_world, VERSION, "world_val", sweeps=2, limit=1)
    assert first.tokens == world.tokens[:1]
    assert len(first) == 1


def test_velocities_of_the_version_folder_win(damaged_world: Path, world: NuScenesDataset):
    annotations = world.devkit.get("sample", world.tokens[0])["anns"]
    kept = [
        token
        for token in annotations
        if category_to_detection_name(world.devkit.get("sample_annotation", token)["category_name"])
    ]
    velocity = {kept[0]: [3.0, 4.0], kept[1]: None}
    (damaged_world / VERSION / "velocity.json").write_text(json.dumps(velocity))
    dataset = NuScenesDataset(damaged_world, VERSION, "world_val", sweeps=0)
    boxes, expected = dataset.frame(0).boxes, world.frame(0).boxes
    assert boxes is not None and expected is not None
    assert np.linalg.norm(boxes.values[0, 7:]) == pytest.approx(5, rel=1e-2)
    assert boxes.values[1, 7:].isnan().all()
    np.testing.assert_array_equal(boxes.values[2:], expected.values[2:])


def test_fingerprint_depends_on_tables_split_and_files(damaged_world: Path, tiny_world: Path):
    def fingerprint(root: Path, split: str = "world_val") -> str:
        return NuScenesDataset(root, VERSION, split, sweeps=1).fingerprint()

    original = fingerprint(tiny_world)
    assert fingerprint(damaged_world) == original
    assert fingerprint(damaged_world, "world_train") != original
    dataset = NuScenesDataset(damaged_world, VERSION, "world_val", sweeps=1)
    sweep = key_file(dataset, "LIDAR_TOP")
    content = sweep.read_bytes()
    sweep.unlink()
    sweep.write_bytes(content[:-20])
    assert fingerprint(damaged_world) != original


def key_file(dataset: NuScenesDataset, channel: str) -> Path:
    sample = dataset.devkit.get("sample", dataset.tokens[-1])
    return Path(dataset.devkit.get_sample_data_path(sample["data"][channel]))


@pytest.mark.parametrize(
    ("channel", "content", "complaint"),
    [
        ("CAM_BACK", None, "cannot be read"),
        ("CAM_BACK", b"", "the image is empty"),
        ("LIDAR_TOP", None, "cannot be read"),
        ("LIDAR_TOP", bytes(1234), "truncated, 1234 bytes"),
    ],
)
def test_check_names_the_damaged_file(
    damaged_world: Path, channel: str, content: bytes | None, complaint: str
):
    dataset = NuScenesDataset(damaged_world, VERSION, "world_val", sweeps=2)
    dataset.check()
    path = key_file(dataset, channel)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BevquantError, match=f"{path}.*{complaint}"):
        dataset.check()
    with pytest.raises(BevquantError, match=str(path)):
        dataset.frame(len(dataset) - 1)


def test_frame_names_a_broken_image(damaged_world: Path):
    dataset = NuScenesDataset(damaged_world, VERSION, "world_val", sweeps=0)
    path = key_file(dataset, "CAM_FRONT")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BevquantError, match=f"{path}: not a readable image"):
        dataset.frame(len(dataset) - 1)


def test_frame_names_a_broken_chain_of_sweeps(damaged_world: Path):
    path = damaged_world / VERSION / "sample_data.json"
    records = json.loads(path.read_text())
    for record in records:
        record["prev"] = "gone" if record["prev"] else ""
    path.unlink()
    path.write_text(json.dumps(records))
    dataset = NuScenesDataset(damaged_world, VERSION, "world_val", sweeps=1)
    with pytest.raises(BevquantError, match=r"sample_data\.json: no record 'gone'"):
        dataset.check()


@pytest.mark.parametrize("channel", ["LIDAR_TOP", "CAM_BACK_LEFT"])
def test_a_sample_without_a_sensor_is_refused_at_once(damaged_world: Path, channel: str):
    path = damaged_world / VERSION / "sensor.json"
    records = json.loads(path.read_text())
    for record in records:
        if record["channel"] == channel:
            record["channel"] = "RADAR_FRONT"
    path.unlink()
    path.write_text(json.dumps(records))
    with pytest.raises(BevquantError, match=f"has no key frame of {channel}"):
        NuScenesDataset(damaged_world, VERSION, "world_val", sweeps=0)


def test_the_real_frame_gives_the_published_matrices_and_boxes(
    real: NuScenesDataset, real_frame: Path
):
    frame = real.frame(0)
    published = json.loads((real_frame / "frame.json").read_text())
    for index, camera in enumerate(CAMERAS):
        matrices = published["cameras"][camera]
        np.testing.assert_allclose(frame.lidar2camera[index], matrices["lidar2cam"], atol=1e-6)
        np.testing.assert_allclose(frame.intrinsics[index], matrices["cam2img"])
    np.testing.assert_allclose(frame.ego2global, published["ego2global"], atol=1e-6)
    assert frame.points.shape[1] == 5 and frame.boxes is not None
    rows = np.array([box["center_lwh_yaw_lidar"] for box in published["boxes"]])
    names = np.array([box["name"] for box in published["boxes"]])
    for values, label in zip(frame.boxes.values.numpy(), frame.boxes.labels, strict=True):
        nearest = np.linalg.norm(rows[:, :3] - values[:3], axis=1).argmin()
        np.testing.assert_allclose(values[:7], rows[nearest], atol=1e-5)
        assert CLASSES[label] == names[nearest]


def test_points_of_an_object_fall_on_it_in_the_real_images(real: NuScenesDataset):
    frame = real.frame(0)
    sample = sample_of(real, frame)
    _, boxes, _ = real.devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
    checked = 0
    for box in boxes:
        inside = frame.points[points_in_box(box, frame.points[:, :3].T), :3]
        for camera, channel in enumerate(CAMERAS):
            _, (seen, *_), intrinsic = real.devkit.get_sample_data(
                sample["data"][channel],
                selected_anntokens=[box.token],
                box_vis_level=BoxVisibility.NONE,
            )
            corners = seen.corners()
            if corners[2].min() < 1 or not len(inside):
                continue
            outline = view_points(corners, intrinsic, normalize=True)[:2].T
            centre = outline.mean(axis=0)
            outline = centre + 1.001 * (outline - centre)
            pixels, _ = project(frame, camera, inside)
            assert (Delaunay(outline).find_simplex(pixels) >= 0).all()
            checked += len(inside)
    assert checked > 500


def test_images_of_the_key_frame_before(tiny_world: Path) -> None:
    plain = NuScenesDataset(tiny_world, VERSION, "world_train", sweeps=0)
    both = NuScenesDataset(tiny_world, VERSION, "world_train", sweeps=0, past_images=1)
    first, second = both.frame(0), both.frame(1)
    before, now = plain.frame(0), plain.frame(1)
    assert len(second.images) == 12
    for i in range(6):
        np.testing.assert_array_equal(second.images[i], now.images[i])
        np.testing.assert_array_equal(second.images[6 + i], before.images[i])
    np.testing.assert_array_equal(second.intrinsics[6:], before.intrinsics)
    # A point of the world that the earlier camera saw, by way of the LiDAR of its own time.
    point = lidar2global(now) @ np.array([3.0, 9.0, -1.0, 1.0])
    then = before.lidar2camera @ np.linalg.inv(lidar2global(before)) @ point
    np.testing.assert_allclose(second.lidar2camera[6:] @ [3.0, 9.0, -1.0, 1.0], then, atol=1e-9)
    moved = lidar2global(now)[:2, 3] - lidar2global(before)[:2, 3]
    assert np.linalg.norm(moved) > 0.5
    # The first key frame of a scene stands in for the one before.
    np.testing.assert_array_equal(first.images[7], before.images[1])
    np.testing.assert_array_equal(first.lidar2camera[6:], before.lidar2camera)
