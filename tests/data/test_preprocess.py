from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from bevquant.data.frame import Boxes, Frame
from bevquant.data.preprocess import FULL, SMALL, Preprocess, collate
from bevquant.errors import BevquantError

MEAN = np.float32([123.675, 116.28, 103.53])
STD = np.float32([58.395, 57.12, 57.375])


def random_frame(seed: int, width: int, height: int, points: int = 50) -> Frame:
    generator = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(generator.normal(size=(6, 3, 3)))
    lidar2camera = np.broadcast_to(np.eye(4), (6, 4, 4)).copy()
    lidar2camera[:, :3, :3] = turn
    lidar2camera[:, :3, 3] = generator.normal(size=(6, 3))
    intrinsics = np.array([[800.0, 0, width / 2], [0, 810, height / 2], [0, 0, 1]])
    return Frame(
        token=f"sample-{seed}",
        images=tuple(
            generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(6)
        ),
        intrinsics=np.stack([intrinsics * 1] * 6),
        lidar2camera=lidar2camera,
        points=generator.uniform(-60, 60, (points, 5)).astype(np.float32) * [1, 1, 0.1, 1, 1],
        lidar2ego=np.eye(4),
        ego2global=np.eye(4),
        boxes=Boxes(torch.zeros(seed, 9), torch.zeros(seed, dtype=torch.int64)),
    )


@pytest.fixture(scope="module")
def reference_frame() -> Frame:
    return random_frame(1, 1600, 900)


@pytest.fixture(scope="module")
def small_frame() -> Frame:
    return random_frame(2, 352, 198)


def test_reference_images_are_pillows_resize_crop_and_normalise(reference_frame: Frame):
    batch = collate([reference_frame], FULL)
    assert batch.images.shape == (1, 6, 3, 256, 704)
    assert batch.images.dtype == torch.float32 and batch.images.is_contiguous()
    for image, got in zip(reference_frame.images, batch.images[0], strict=True):
        plain = Image.fromarray(image).resize((768, 432)).crop((32, 176, 736, 432))
        expected = (np.asarray(plain).astype(np.float32) - MEAN) / STD
        np.testing.assert_array_equal(got.permute(1, 2, 0), expected)


@pytest.mark.parametrize("resize", [0.3, 0.48, 0.5, 0.77, 1.3, 2.5])
def test_rows_that_are_not_resized_change_nothing(resize: float):
    frame = random_frame(3, 160, 90)
    height, width = int(90 * resize), int(160 * resize)
    for cut in (1, height // 4, height // 2, height - 1):
        size = (height - cut, width - 2)
        settings = FULL.model_copy(update={"image_resize": resize, "image_size": size})
        image = Image.fromarray(frame.images[0]).resize((width, height), Image.Resampling.BICUBIC)
        expected = (np.float32(image)[cut:, 1 : width - 1] - MEAN) / STD
        actual = collate([replace(frame, points=np.zeros((1, 5), np.float32))], settings).images
        np.testing.assert_allclose(actual[0, 0].numpy().transpose(1, 2, 0), expected, atol=1e-5)


def test_small_images_are_cropped_at_the_top_only(small_frame: Frame):
    batch = collate([small_frame], SMALL)
    assert batch.images.shape == (1, 6, 3, 128, 352)
    for image, got in zip(small_frame.images, batch.images[0], strict=True):
        expected = (image[70:].astype(np.float32) - MEAN) / STD
        np.testing.assert_array_equal(got.permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("preset", "name", "scale", "shift"),
    [(FULL, "reference_frame", 0.48, (-32, -176)), (SMALL, "small_frame", 1.0, (0, -70))],
)
def test_image_augmentation_maps_stored_pixels_to_network_pixels(
    preset: Preprocess,
    name: str,
    scale: float,
    shift: tuple[int, int],
    request: pytest.FixtureRequest,
):
    batch = collate([request.getfixturevalue(name)], preset)
    expected = torch.diag(torch.tensor([scale, scale, 1, 1]))
    expected[:2, 3] = torch.tensor(shift)
    for matrix in batch.image_augmentation[0]:
        torch.testing.assert_close(matrix, expected)


def test_matrices_are_those_of_the_frame(small_frame: Frame):
    batch = collate([small_frame], SMALL)
    for camera in range(6):
        lidar2camera = small_frame.lidar2camera[camera]
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = small_frame.intrinsics[camera]
        np.testing.assert_allclose(batch.intrinsics[0, camera], intrinsics)
        np.testing.assert_allclose(
            batch.camera2lidar[0, camera], np.linalg.inv(lidar2camera), atol=1e-6
        )
        np.testing.assert_allclose(
            batch.lidar2image[0, camera], intrinsics @ lidar2camera, rtol=1e-6, atol=1e-4
        )
    np.testing.assert_array_equal(batch.lidar_augmentation, np.eye(4)[None])
    assert batch.lidar2image.dtype == batch.camera2lidar.dtype == torch.float32


def test_points_on_or_beyond_the_border_are_outside(small_frame: Frame):
    inside = np.float32([[44.79, 0, 0, 1, 2], [0, -44.79, -4.99, 3, 4], [0, 0, 2.99, 5, 6]])
    outside = np.float32(
        [[44.8, 0, 0, 0, 0], [0, -44.8, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, -5, 0, 0]]
    )
    points = np.concatenate([outside[:2], inside, outside[2:]])
    batch = collate([replace(small_frame, points=points)], SMALL)
    np.testing.assert_array_equal(batch.points[0], inside)


def test_a_batch_keeps_the_order_and_lengths_of_its_frames():
    frames = [random_frame(seed, 352, 198, points=20 * seed) for seed in (3, 1, 2)]
    batch = collate(frames, SMALL)
    assert batch.tokens == ("sample-3", "sample-1", "sample-2")
    assert batch.boxes is not None
    assert [len(boxes) for boxes in batch.boxes] == [3, 1, 2]
    for row, frame in enumerate(frames):
        alone = collate([frame], SMALL)
        torch.testing.assert_close(batch.images[row], alone.images[0])
        torch.testing.assert_close(batch.points[row], alone.points[0])
        torch.testing.assert_close(batch.lidar2image[row], alone.lidar2image[0])


def test_a_batch_with_an_unannotated_frame_has_no_boxes(small_frame: Frame):
    assert collate([small_frame, replace(small_frame, boxes=None)], SMALL).boxes is None


def test_a_frame_without_a_point_in_range_is_refused(small_frame: Frame):
    far = replace(small_frame, points=small_frame.points + np.float32(1000))
    with pytest.raises(BevquantError, match="sample-2: none of its 50 LiDAR points"):
        collate([far], SMALL)


def test_images_smaller_than_the_networks_are_refused(small_frame: Frame):
    with pytest.raises(BevquantError, match=r"352x198 resized by 0.48 is smaller than .* 704x256"):
        collate([small_frame], FULL)


def test_preprocess_refuses_what_it_does_not_know():
    with pytest.raises(ValidationError, match="image_sise"):
        Preprocess.model_validate({**SMALL.model_dump(), "image_sise": (1, 1)})
    assert Preprocess.model_validate_json(SMALL.model_dump_json()) == SMALL
