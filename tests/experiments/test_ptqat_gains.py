"""What training wins, worked out by hand."""

from typing import Any

from bevquant.experiments.ptqat_gains import loss_taken_off, points, side_by_side


def rows(key: str, *trained: tuple[float, float]) -> dict[str, list[dict[str, Any]]]:
    """Rows of as many seeds, which start at .5 and at a loss of 2."""
    return {
        "PTQ": [{key: 0.5, "loss": []} for _ in trained],
        "QAT": [{key: value, "loss": [2.0, loss]} for value, loss in trained],
        "inverted": [{key: 0.5, "loss": []} for _ in trained],
    }


def test_gains_are_taken_from_the_start_of_the_same_seed() -> None:
    found = rows("NDS", (0.51, 1.0), (0.49, 1.5))
    found["PTQ"][1]["NDS"] = 0.48
    assert [round(x, 6) for x in points(found, "QAT")] == [1.0, 1.0]
    assert loss_taken_off(found, "QAT") == [50.0, 25.0]


def test_what_trains_nothing_wins_nothing() -> None:
    found = rows("mIoU", (0.6, 1.0))
    assert points(found, "inverted") == loss_taken_off(found, "inverted") == [0.0]


def test_networks_stand_side_by_side_whatever_their_metric() -> None:
    detector, occupancy = rows("NDS", (0.51, 1.0), (0.49, 1.5)), rows("mIoU", (0.52, 1.0))
    table = side_by_side({"detector": detector, "occupancy": occupancy}).splitlines()
    assert table[0] == "|  | detector | occupancy | mean |"
    assert table[2] == "| QAT | 37.5 %, +0.00 | 50.0 %, +2.00 | 43.8 %, +1.00 |"
    assert table[3] == "| inverted | 0.0 %, +0.00 | 0.0 %, +0.00 | 0.0 %, +0.00 |"
