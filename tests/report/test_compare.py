import torch
from hypothesis import given
from hypothesis import strategies as st

from bevquant.data.frame import Boxes
from bevquant.report.compare import compare

CELLS = [(x, y) for x in range(-20, 21, 8) for y in range(-20, 21, 8)]
subsets = st.sets(st.sampled_from(range(len(CELLS))))


def boxes(cells: list[int], shift: float = 0.0, score: float = 0.9) -> Boxes:
    values = torch.zeros(len(cells), 9)
    for row, cell in enumerate(cells):
        values[row, :2] = torch.tensor(CELLS[cell]) + shift
    return Boxes(
        values, torch.zeros(len(cells), dtype=torch.int64), torch.full((len(cells),), score)
    )


def cells(found: Boxes) -> set[int]:
    return {CELLS.index((round(x), round(y))) for x, y in found.values[:, :2].tolist()}


@given(truth=subsets, float_=subsets, quantized=subsets)
def test_far_apart_objects_compare_as_sets(
    truth: set[int], float_: set[int], quantized: set[int]
) -> None:
    change = compare(
        boxes(sorted(truth)), boxes(sorted(float_), 0.4), boxes(sorted(quantized), -0.4), 0.5, 54.0
    )
    assert cells(change.found) == truth & quantized
    assert change.found_by_float == len(truth & float_)
    assert cells(change.lost) == (truth & float_) - quantized
    assert cells(change.new_false) == quantized - truth - float_
    assert cells(change.kept) == quantized - cells(change.new_false)
    distances = change.lost.values[:, :2].norm(dim=1)
    assert torch.equal(distances, distances.sort().values)


def test_an_unsure_box_finds_nothing() -> None:
    change = compare(
        boxes([3]), boxes([3], score=0.5), boxes([3], score=0.49), min_score=0.5, reach=54.0
    )
    assert change.lost.scores is not None
    assert change.lost.scores.tolist() == [0.5]
    assert not len(change.found) and not len(change.kept)


def test_a_box_of_another_class_finds_nothing() -> None:
    other = boxes([3])
    other = Boxes(other.values, other.labels + 1, other.scores)
    change = compare(boxes([3]), boxes([3]), other, min_score=0.5, reach=54.0)
    assert (len(change.lost), len(change.new_false)) == (1, 1)


def test_what_lies_beyond_reach_does_not_count() -> None:
    corner, middle = CELLS.index((20, 20)), CELLS.index((4, -4))
    both = boxes([corner, middle])
    change = compare(both, both, boxes([]), min_score=0.5, reach=15.0)
    assert cells(change.truth) == cells(change.lost) == {middle}
