"""nuScenes-format data roots as frames, read through the official devkit."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from PIL import Image

from bevquant.data.frame import CAMERAS, CLASSES, Array, Boxes, Frame
from bevquant.data.geometry import pose_matrix, rigid_inverse, rotation_matrices
from bevquant.data.label_files import LABEL_SUFFIXES, LabelFiles
from bevquant.data.labels import MapGrid, Occupancy
from bevquant.data.preprocess import Preprocess, points_in_range
from bevquant.data.sweeps import check_size, compensate, read_points
from bevquant.data.tables import open_tables, split_tokens
from bevquant.errors import BevquantError
from bevquant.files import read_json, sha256
from bevquant.progress import track

LIDAR = "LIDAR_TOP"


class NuScenesDataset:
    """The key frames of one split of a nuScenes-format data root.

    Attributes:
        devkit: the tables, as the official devkit opened them.
        split: the name of the split.
        sweeps: how many earlier LiDAR sweeps a frame gets at most (fewer at the start of
            a scene).
        past_images: of how many earlier key frames a frame gets the images too; where a scene
            begins its first key frame stands in for them.
        beam_step: 1 for all LiDAR beams; 2 keeps every other ring, as an ablation.
        tokens: sample tokens in the order of the sample table.

    Raises:
        BevquantError: the version folder, a table or the split does not exist or is
            broken, or a sample lacks a sensor. Files of the sensors are looked at by
            :meth:`check` and :meth:`frame`.
    """

    def __init__(
        self,
        root: Path,
        version: str,
        split: str,
        *,
        sweeps: int,
        past_images: int = 0,
        limit: int | None = None,
        beam_step: int = 1,
        map_grid: MapGrid | None = None,
        occupancy: bool = False,
    ) -> None:
        """Open ``split`` of ``root/version``; with ``limit`` only its first frames.

        Frames get map labels on the cells of ``map_grid``, if it is given, and occupancy
        labels, if ``occupancy`` is.
        """
        self.devkit: NuScenes = open_tables(root, version)
        self.split = split
        self.sweeps = sweeps
        self.past_images = past_images
        self.beam_step = beam_step
        self.tokens: tuple[str, ...] = split_tokens(self.devkit, split)[:limit]
        self._folder = root / version
        self._root = root
        self._labels = LabelFiles(root, map_grid, occupancy)
        velocity = self._folder / "velocity.json"
        self._velocities: dict[str, list[float] | None] = (
            read_json(velocity) if velocity.is_file() else {}
        )
        for token in self.tokens:
            missing = {LIDAR, *CAMERAS} - set(self._get("sample", token)["data"])
            if missing:
                raise BevquantError(
                    f"{self._folder / 'sample_data.json'}: sample {token} has no key frame of "
                    f"{', '.join(sorted(missing))}; every sample needs {LIDAR} and six cameras"
                )

    def __len__(self) -> int:
        return len(self.tokens)

    def check(self) -> None:
        """Look for missing, empty and truncated sensor files, without reading them.

        Raises:
            BevquantError: a file is unusable; the message names the first one.
        """
        for path in self._files():
            try:
                size = path.stat().st_size
            except OSError as error:
                label = path.suffix in LABEL_SUFFIXES
                mend = "unpack the labels there, or generate the world with --labels"
                raise BevquantError(
                    f"{path}: cannot be read ({error.strerror}); {mend if label else 'restore it'}"
                ) from error
            if path.suffix == ".bin":
                check_size(path, size)
            elif size == 0:
                kind = "file" if path.suffix in LABEL_SUFFIXES else "image"
                raise BevquantError(f"{path}: the {kind} is empty; restore it")

    def check_points(self, preprocess: Preprocess) -> None:
        """Read the LiDAR points of every frame, so that bad ones stop no run half-way.

        Raises:
            BevquantError: a point file is truncated or holds NaN, or a frame has no point in
                the range of ``preprocess``.
        """
        for token in track(self.tokens, "checking the LiDAR points"):
            points_in_range(self._points(token), preprocess, token)

    def fingerprint(self) -> str:
        """Return the SHA-256 over the tables, the split's tokens and its files' sizes."""
        self.check()
        digest = hashlib.sha256()
        for table in sorted(self._folder.glob("*.json")):
            digest.update(f"{table.name} {sha256(table)}\n".encode())
        digest.update(" ".join(self.tokens).encode())
        for path in self._files():
            digest.update(f"{path.relative_to(self._root)} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def poses(self, token: str) -> tuple[Array, Array]:
        """Return ``lidar2ego`` and ``ego2global`` of a sample's LiDAR sweep, float64 [4, 4]."""
        return self._poses(self._key_record(token, LIDAR))

    def frame(self, index: int) -> Frame:
        """Read the frame at ``index`` from disk.

        Raises:
            BevquantError: a file is missing or broken, or points hold NaN.
        """
        token = self.tokens[index]
        lidar2ego, ego2global = self.poses(token)
        lidar2global = ego2global @ lidar2ego
        cameras = self._camera_records(token)
        annotated = bool(self.devkit.sample_annotation)
        boxes, boxes_points = self._boxes(token, rigid_inverse(lidar2global))
        return Frame(
            token=token,
            images=tuple(_read_image(self._path(record)) for record in cameras),
            intrinsics=np.stack([self._intrinsics(record) for record in cameras]),
            lidar2camera=np.stack(
                [rigid_inverse(self._sensor2global(record)) @ lidar2global for record in cameras]
            ),
            points=self._points(token),
            lidar2ego=lidar2ego,
            ego2global=ego2global,
            boxes=boxes if annotated else None,
            boxes_points=boxes_points if annotated else None,
            map_masks=self.map_masks(index),
            occupancy=self.voxels(index),
        )

    def map_masks(self, index: int) -> Array | None:
        """Return the map labels of a frame, bool [6, X, Y], if this data set has any.

        Raises:
            BevquantError: the map of the frame's location is missing or broken.
        """
        token = self.tokens[index]
        lidar2ego, ego2global = self.poses(token)
        return self._labels.map_masks(self._place(token)[0], ego2global @ lidar2ego)

    def voxels(self, index: int) -> Occupancy | None:
        """Return the occupancy labels of a frame, if this data set has any.

        Raises:
            BevquantError: the file is missing or broken.
        """
        token = self.tokens[index]
        return self._labels.voxels(self._place(token)[1], token)

    def _points(self, token: str) -> Array:
        key, *earlier = self._lidar_records(token)
        global2lidar = rigid_inverse(self._sensor2global(key))
        points = self._beams(key)
        points[:, 4] = 0
        clouds = [points]
        for record in earlier:
            seconds = (key["timestamp"] - record["timestamp"]) * 1e-6
            sweep2key = global2lidar @ self._sensor2global(record)
            clouds.append(compensate(self._beams(record), sweep2key, seconds))
        # Where a scene has no earlier sweep, mmdetection3d repeats the key frame instead
        # (pad_empty_sweeps). Copies tell nothing new, and are left out here: they cost ten
        # times the points, and move a voxel's mean only by counting some points twice.
        return np.concatenate(clouds)

    def _beams(self, record: dict[str, Any]) -> Array:
        points = read_points(self._path(record))
        return points if self.beam_step == 1 else points[points[:, 4] % self.beam_step == 0]

    def _boxes(self, token: str, global2lidar: Array) -> tuple[Boxes, Array]:
        records, labels = [], []
        for annotation in self._get("sample", token)["anns"]:
            record = self._get("sample_annotation", annotation)
            name = category_to_detection_name(record["category_name"])
            if name is not None:
                records.append(record)
                labels.append(CLASSES.index(name))
        values = np.zeros((len(records), 9))
        if records:
            rotation, translation = global2lidar[:3, :3], global2lidar[:3, 3]
            centres = np.array([record["translation"] for record in records])
            values[:, :3] = centres @ rotation.T + translation
            values[:, 3:6] = np.array([record["size"] for record in records])[:, [1, 0, 2]]
            quaternions = np.array([record["rotation"] for record in records])
            box2lidar = rotation @ rotation_matrices(quaternions)
            # The yaw of mmdetection3d's info files. The LiDAR is tilted a little, so that
            # other definitions of yaw differ from this one by up to some milliradians.
            values[:, 6] = np.arctan2(-box2lidar[:, 0, 1], box2lidar[:, 0, 0])
            velocities = np.array([self._velocity(record["token"]) for record in records])
            values[:, 7:] = (velocities @ rotation.T)[:, :2]
        points = np.array([record["num_lidar_pts"] for record in records], dtype=np.int64)
        boxes = Boxes(torch.from_numpy(values).float(), torch.tensor(labels, dtype=torch.int64))
        return boxes, points

    def _velocity(self, annotation: str) -> tuple[float, float, float]:
        """Return a box's velocity in the global frame without its vertical part."""
        if annotation in self._velocities:
            x, y = self._velocities[annotation] or (np.nan, np.nan)
        else:
            x, y, _ = self.devkit.box_velocity(annotation)
        return x, y, 0.0

    def _files(self) -> Iterator[Path]:
        for token in self.tokens:
            for record in self._camera_records(token):
                yield self._path(record)
            for record in self._lidar_records(token):
                yield self._path(record)
            yield from self._labels.voxel_files(self._place(token)[1], token)
        yield from self._labels.map_files(self._place(token)[0] for token in self.tokens)

    def _place(self, token: str) -> tuple[str, str]:
        """Return location and scene of a sample, by name."""
        scene = self._get("scene", self._get("sample", token)["scene_token"])
        log = self._get("log", scene["log_token"])
        if not isinstance(log.get("location"), str):
            raise BevquantError(
                f"{self._folder / 'log.json'}: record {log['token']!r} has no location; restore it"
            )
        return log["location"], str(scene["name"])

    def _camera_records(self, token: str) -> list[dict[str, Any]]:
        """List the ``sample_data`` of a sample's cameras, then those of the samples before."""
        samples = [token]
        for _ in range(self.past_images):
            samples.append(self._get("sample", samples[-1])["prev"] or samples[-1])
        return [self._key_record(sample, camera) for sample in samples for camera in CAMERAS]

    def _lidar_records(self, token: str) -> list[dict[str, Any]]:
        """List the ``sample_data`` of a sample's LiDAR and its earlier sweeps, newest first."""
        records = [self._key_record(token, LIDAR)]
        while len(records) <= self.sweeps and records[-1]["prev"]:
            records.append(self._get("sample_data", records[-1]["prev"]))
        return records

    def _key_record(self, token: str, channel: str) -> dict[str, Any]:
        return self._get("sample_data", self._get("sample", token)["data"][channel])

    def _poses(self, record: dict[str, Any]) -> tuple[Array, Array]:
        """Return sensor to ego, and ego to global at the time of the ``sample_data`` record."""
        sensor = self._get("calibrated_sensor", record["calibrated_sensor_token"])
        return pose_matrix(sensor), pose_matrix(self._get("ego_pose", record["ego_pose_token"]))

    def _sensor2global(self, record: dict[str, Any]) -> Array:
        sensor2ego, ego2global = self._poses(record)
        return np.asarray(ego2global @ sensor2ego)

    def _intrinsics(self, record: dict[str, Any]) -> Array:
        sensor = self._get("calibrated_sensor", record["calibrated_sensor_token"])
        return np.array(sensor["camera_intrinsic"], dtype=np.float64)

    def _path(self, record: dict[str, Any]) -> Path:
        name = Path(str(record["filename"]))
        if name.is_absolute() or ".." in name.parts:
            raise BevquantError(
                f"{self._folder / 'sample_data.json'}: filename {str(name)!r} lies outside of the "
                "data set; restore the table"
            )
        return self._root / name

    def _get(self, table: str, token: str) -> dict[str, Any]:
        try:
            record: dict[str, Any] = self.devkit.get(table, token)
        except KeyError as error:
            raise BevquantError(
                f"{self._folder / f'{table}.json'}: no record {token!r}; restore the table"
            ) from error
        return record


def _read_image(path: Path) -> Array:
    """Read an image as uint8 [H, W, 3] RGB."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise BevquantError(f"{path}: not a readable image ({error}); restore it") from error
