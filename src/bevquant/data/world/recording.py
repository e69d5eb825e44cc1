"""Drive through one scene and write what the sensors see, with its annotations."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from bevquant.data.world import occupancy, tables
from bevquant.data.world.camera import Picture, photograph
from bevquant.data.world.geometry import Array
from bevquant.data.world.lidar import sweep
from bevquant.data.world.rig import LIDAR, MOUNTS, mount_pose
from bevquant.data.world.roadmap import road_map
from bevquant.data.world.scene import Scene, generator, make_scene
from bevquant.data.world.settings import KEYFRAME_SECONDS, WorldSettings
from bevquant.data.world.tables import Record, Tables, token
from bevquant.files import write_bytes, write_text

_EPOCH = 1_530_000_000_000_000
_SCENE_MICROSECONDS = 60_000_000
_JPEG_QUALITY = 90


def scene_name(settings: WorldSettings, index: int) -> str:
    """Return the name of scene ``index``."""
    return f"world-{settings.seed}-{index:04d}"


def record_scene(root: Path, settings: WorldSettings, index: int) -> Tables:
    """Write images, sweeps and map of scene ``index`` under ``root``; return its records."""
    return _Recorder(root, settings, index).run()


class _Recorder:
    """Collects the records of one scene while its files are written."""

    def __init__(self, root: Path, settings: WorldSettings, index: int) -> None:
        self._root = root
        self._settings = settings
        self._index = index
        self._name = scene_name(settings, index)
        self._scene = make_scene(settings, index)
        self._tables = tables.empty()
        self._stream = 0

    def run(self) -> Tables:
        """Record the whole scene."""
        self._describe()
        for keyframe in range(self._settings.keyframes):
            self._sample(keyframe)
        for channel in MOUNTS:
            calibrated = token(self._name, channel)
            tables.link(
                [
                    data
                    for data in self._tables["sample_data"]
                    if data["calibrated_sensor_token"] == calibrated
                ]
            )
        tables.link(self._tables["sample"])
        self._instances()
        return self._tables

    def _describe(self) -> None:
        """Write the map; record scene, log, map and calibration."""
        name, keyframes = self._name, self._settings.keyframes
        log, map_file = token(name, "log"), f"maps/{name}.png"
        Image.fromarray(self._scene.block.town.mask()).save(self._root / map_file, compress_level=3)
        if self._settings.labels:
            content = json.dumps(road_map(name, self._scene.block))
            write_text(self._root / "maps" / "expansion" / f"{name}.json", content)
        speed = self._scene.block.ego.speed
        turn = self._scene.block.ego.turn
        way = "standing" if speed == 0 else "turning" if turn else "straight on"
        self._tables["scene"].append(
            {
                "token": token(name),
                "log_token": log,
                "nbr_samples": keyframes,
                "first_sample_token": token(name, "sample", 0),
                "last_sample_token": token(name, "sample", keyframes - 1),
                "name": name,
                "description": f"{self._scene.weather.value}, {way}",
            }
        )
        self._tables["log"].append(
            {
                "token": log,
                "logfile": name,
                "vehicle": "generated",
                "date_captured": "2018-06-26",
                "location": name,
            }
        )
        self._tables["map"].append(
            {
                "category": "semantic_prior",
                "token": token(name, "map"),
                "filename": map_file,
                "log_tokens": [log],
            }
        )
        self._tables["calibrated_sensor"].extend(
            tables.calibrated_sensor(name, channel, self._settings.image_size) for channel in MOUNTS
        )

    def _sample(self, keyframe: int) -> None:
        """Record one key frame and the sweeps that lead to it."""
        time = keyframe * KEYFRAME_SECONDS
        sample = token(self._name, "sample", keyframe)
        self._tables["sample"].append(
            {
                "token": sample,
                "timestamp": self._timestamp(time),
                "prev": "",
                "next": "",
                "scene_token": token(self._name),
            }
        )
        for early in range(self._settings.sweeps, 0, -1):
            before = early * KEYFRAME_SECONDS / (self._settings.sweeps + 1)
            self._sweep(sample, time - before, is_key_frame=False)
        points = self._sweep(sample, time, is_key_frame=True)
        pictures = self._photographs(sample, time)
        visible = np.sum([picture.visible for picture in pictures.values()], axis=0)
        alone = np.sum([picture.alone for picture in pictures.values()], axis=0)
        self._annotate(keyframe, points, visible, alone)
        if self._settings.labels:
            self._voxels(sample, time, points, pictures)

    def _sweep(self, sample: str, time: float, *, is_key_frame: bool) -> Array:
        """Record one LiDAR revolution; return its points (float32 [P, 5])."""
        ego = self._scene.ego(time)
        points = sweep(self._scene, self._settings, time, ego, self._random())
        self._data(sample, LIDAR, time, points.tobytes(), is_key_frame=is_key_frame)
        return points

    def _photographs(self, sample: str, time: float) -> dict[str, Picture]:
        """Record and return the pictures of all cameras."""
        ego = self._scene.ego(time)
        solids = self._scene.solids(time)
        pictures = {}
        for channel in MOUNTS:
            if channel == LIDAR:
                continue
            picture = photograph(
                self._scene, solids, channel, self._settings.image_size, ego, rng=self._random()
            )
            file = BytesIO()
            Image.fromarray(picture.image).save(file, "JPEG", quality=_JPEG_QUALITY)
            self._data(sample, channel, time, file.getvalue(), is_key_frame=True)
            pictures[channel] = picture
        return pictures

    def _voxels(
        self, sample: str, time: float, points: Array, pictures: Mapping[str, Picture]
    ) -> None:
        """Write the occupancy of a key frame where Occ3D has it."""
        file = BytesIO()
        np.savez_compressed(
            file,
            semantics=occupancy.semantics(self._scene, time),
            mask_lidar=occupancy.lidar_mask(points).astype(np.uint8),
            mask_camera=occupancy.camera_mask(
                {channel: picture.depth for channel, picture in pictures.items()}
            ).astype(np.uint8),
        )
        write_bytes(self._root / "gts" / self._name / sample / "labels.npz", file.getvalue())

    def _data(
        self, sample: str, channel: str, time: float, content: bytes, *, is_key_frame: bool
    ) -> None:
        """Write one sensor file; record it and the car's pose at that moment."""
        timestamp = self._timestamp(time)
        extension = "pcd.bin" if channel == LIDAR else "jpg"
        folder = "samples" if is_key_frame else "sweeps"
        filename = f"{folder}/{channel}/{self._name}__{channel}__{timestamp}.{extension}"
        (self._root / filename).write_bytes(content)
        data = token(self._name, channel, timestamp)
        height, width = (0, 0) if channel == LIDAR else self._settings.image_size
        self._tables["ego_pose"].append(tables.ego_pose(data, timestamp, self._scene.ego(time)))
        self._tables["sample_data"].append(
            {
                "token": data,
                "sample_token": sample,
                "ego_pose_token": data,
                "calibrated_sensor_token": token(self._name, channel),
                "timestamp": timestamp,
                "fileformat": "pcd" if channel == LIDAR else "jpg",
                "is_key_frame": is_key_frame,
                "height": height,
                "width": width,
                "filename": filename,
                "prev": "",
                "next": "",
            }
        )

    def _annotate(self, keyframe: int, points: Array, visible: Array, alone: Array) -> None:
        """Record the boxes of all annotated actors within range."""
        time = keyframe * KEYFRAME_SECONDS
        scene = self._scene
        ego = scene.ego(time)
        cloud = _to_global(scene, time, points)
        for number, actor in enumerate(scene.actors):
            if actor.kind.category is None:
                continue
            centre, yaw = actor.pose(time, scene.plane)
            if np.hypot(*(centre - ego.translation)[:2]) > self._settings.annotation_range:
                continue
            length, width, height = actor.size
            attribute = actor.attribute
            self._tables["sample_annotation"].append(
                {
                    "token": token(self._name, "annotation", number, keyframe),
                    "sample_token": token(self._name, "sample", keyframe),
                    "instance_token": token(self._name, "instance", number),
                    "visibility_token": tables.visibility_token(visible[number], alone[number]),
                    "attribute_tokens": [token("attribute", attribute)] if attribute else [],
                    "translation": centre.tolist(),
                    "size": [width, length, height],
                    "rotation": tables.yaw_quaternion(yaw),
                    "prev": "",
                    "next": "",
                    "num_lidar_pts": _count(cloud, centre, actor.size, yaw),
                    "num_radar_pts": 0,
                }
            )

    def _instances(self) -> None:
        """Chain each actor's annotations and record it as one instance."""
        tracks: dict[str, list[Record]] = {}
        for annotation in self._tables["sample_annotation"]:
            tracks.setdefault(annotation["instance_token"], []).append(annotation)
        for number, actor in enumerate(self._scene.actors):
            instance = token(self._name, "instance", number)
            track = tracks.get(instance)
            if track is None:
                continue
            tables.link(track)
            self._tables["instance"].append(
                {
                    "token": instance,
                    "category_token": token("category", actor.kind.category),
                    "nbr_annotations": len(track),
                    "first_annotation_token": track[0]["token"],
                    "last_annotation_token": track[-1]["token"],
                }
            )

    def _timestamp(self, time: float) -> int:
        return _EPOCH + self._index * _SCENE_MICROSECONDS + round((time + 1.0) * 1e6)

    def _random(self) -> np.random.Generator:
        """Return fresh random numbers for one sensor reading."""
        self._stream += 1
        return generator(self._settings, self._index, self._stream)


def _to_global(scene: Scene, time: float, points: Array) -> Array:
    pose = scene.ego(time) @ mount_pose(LIDAR)
    return np.asarray(points[:, :3].astype(np.float64) @ pose.rotation.T + pose.translation)


def _count(cloud: Array, centre: Array, size: tuple[float, float, float], yaw: float) -> int:
    """Return how many points (global, [P, 3]) lie in a box."""
    x, y, z = (cloud - centre).T
    cos, sin = np.cos(yaw), np.sin(yaw)
    inside = np.abs(cos * x + sin * y) <= size[0] / 2
    inside &= np.abs(cos * y - sin * x) <= size[1] / 2
    inside &= np.abs(z) <= size[2] / 2
    return int(inside.sum())
