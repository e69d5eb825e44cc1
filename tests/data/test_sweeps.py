from pathlib import Path

import numpy as np
import pytest

from bevquant.data.sweeps import compensate, read_points
from bevquant.errors import BevquantError


def test_read_points_gives_what_was_written(tmp_path: Path):
    points = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    points[:, 4] = [3, 0, 31, 5, 5, 1, 2]
    points.tofile(tmp_path / "sweep.pcd.bin")
    np.testing.assert_array_equal(read_points(tmp_path / "sweep.pcd.bin"), points)


@pytest.mark.parametrize("ring", [np.nan, np.inf, -1.0, 5000.0])
def test_a_ring_that_is_no_beam_is_refused(tmp_path: Path, ring: float):
    points = np.zeros((7, 5), np.float32)
    points[3, 4] = ring
    points.tofile(tmp_path / "sweep.pcd.bin")
    with pytest.raises(BevquantError, match=r"sweep\.pcd\.bin: a point's ring is no beam"):
        read_points(tmp_path / "sweep.pcd.bin")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        (b"", "truncated, 0 bytes"),
        (bytes(4 * 13), "truncated, 52 bytes"),
        (bytes(61), "truncated, 61 bytes"),
        (np.float32([[1, 2, np.nan, 4, 5], [1, 2, 3, 4, 5]]).tobytes(), "1 of 2 points hold NaN"),
        (np.float32([[1, 2, 3, np.inf, 5]]).tobytes(), "1 of 1 points hold NaN or infinity"),
    ],
)
def test_read_points_refuses_a_bad_file(tmp_path: Path, content: bytes | None, complaint: str):
    path = tmp_path / "sweep.pcd.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BevquantError, match=f"{path}.*{complaint}"):
        read_points(path)


def test_compensate_turns_shifts_and_dates_points_but_leaves_out_the_car():
    quarter_turn_and_shift = np.array(
        [[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]]
    )
    points = np.float32(
        [[2, 0, 1, 7, 3], [0.99, -0.99, 5, 8, 3], [0.5, 1.0, 0, 9, 3], [-1.0, 0.0, 0, 6, 3]]
    )
    before = points.copy()
    moved = compensate(points, quarter_turn_and_shift, 0.25)
    expected = [[10, 22, 31, 7, 0.25], [9, 20.5, 30, 9, 0.25], [10, 19, 30, 6, 0.25]]
    np.testing.assert_allclose(moved, expected)
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(points, before)


def test_a_cut_between_points_shows_where_the_beams_take_turns(tmp_path: Path):
    points = np.ones((4 * 32, 5), np.float32)
    points[:, 4] = np.tile(np.arange(32), 4)
    path = tmp_path / "sweep.pcd.bin"
    points.tofile(path)
    assert len(read_points(path)) == 4 * 32
    points[: 3 * 32 + 7].tofile(path)
    with pytest.raises(BevquantError, match=f"{path}: truncated, its last firing has 7 points"):
        read_points(path)


def test_beams_in_another_order_may_end_anywhere(tmp_path: Path):
    points = np.ones((70, 5), np.float32)
    points[:, 4] = np.repeat(np.arange(7), 10)
    points[:67].tofile(tmp_path / "sweep.pcd.bin")
    assert len(read_points(tmp_path / "sweep.pcd.bin")) == 67
