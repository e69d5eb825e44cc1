"""Curves keep one row a step, whatever was stopped and continued."""

from pathlib import Path

import pytest

from bevquant.train.curves import Curves, draw, smooth


def test_rows_of_unfinished_steps_are_dropped_when_a_run_continues(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    first = Curves(path, 0)
    for step in (1, 2, 3):
        first.append({"step": step, "loss": step / 2})
    second = Curves(path, 2)
    second.append({"step": 3, "loss": 9.0})
    assert second.rows() == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 9.0},
    ]


def test_smoothing_averages_what_came_before() -> None:
    values = [float(i) for i in range(100)]
    assert smooth(values, 50)[3] == pytest.approx(1.5)
    assert smooth(values, 50)[-1] == pytest.approx(sum(values[50:]) / 50)


def test_picture_is_a_png(tmp_path: Path) -> None:
    draw([{"step": 1, "a": 1.0, "b": 2.0}, {"step": 2, "a": 0.5, "b": 3.0}], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
