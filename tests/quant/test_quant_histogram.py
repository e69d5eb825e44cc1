from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quant_nets import noise
from torch import Tensor

from bevquant.quant.histogram import Histogram

LARGEST = torch.finfo(torch.float32).max
TINY = (0.0, -0.0, 1e-45, -1e-45, 2.0**-127, 1.2e-38, 1e-30, 2.2e-16, -2.2e-16)
FLOATS = (
    st.floats(-LARGEST, LARGEST, width=32)
    | st.floats(-4, 4, width=32)
    | st.floats(-(2.0**-120), 2.0**-120, width=32)
    | st.sampled_from((*TINY, LARGEST, -LARGEST))
)


def seen(rows: Tensor, cuts: list[int], bins: int) -> Histogram:
    histogram = Histogram(bins)
    for part in rows.tensor_split(sorted(cuts), dim=1):
        if part.shape[1]:
            histogram.update(part, part.amin(1), part.amax(1))
    return histogram


@settings(deadline=None)
@example([(0.0, 0.0), (0.0, 0.0), (0.0, 1e-45), (2.2e-16, -1.0)], [1], 2)
@example([(0.0, 2.0**-149), (0.0, 2.0**-148), (2.0**-149, LARGEST)], [1, 2], 7)
@example([(LARGEST, 0.0), (-LARGEST, 1.0)], [1], 2)
@given(
    st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=30),
    st.lists(st.integers(0, 30), max_size=4),
    st.sampled_from((2, 7, 64)),
)
def test_counts_are_numpys_however_the_stream_is_cut(
    pairs: list[tuple[float, float]], cuts: list[int], bins: int
) -> None:
    rows = torch.tensor(pairs, dtype=torch.float32).t()
    streamed, whole = seen(rows, cuts, bins), seen(rows, [], bins)
    assert torch.equal(streamed.counts, whole.counts)
    assert torch.equal(streamed.edges, whole.edges)
    for row, counts, edges in zip(rows.double(), whole.counts, whole.edges, strict=True):
        assert edges[0] <= row.min()
        assert row.max() < edges[-1]
        expected = [int(((row >= a) & (row < b)).sum()) for a, b in pairwise(edges)]
        assert counts.tolist() == expected


def test_bins_are_as_fine_as_their_number_allows() -> None:
    for scale in (1e-36, 1e-30, 1.0, 1e30):
        x = noise(3, 1000) * scale
        histogram = seen(x, [10, 500], 256)
        spread = histogram.maximum - histogram.minimum
        assert (histogram.width * 256 >= spread).all()
        assert (histogram.width * 256 <= 4 * spread).all()


@pytest.mark.parametrize("value", [0.0, 3.7, -1e-30, 1e30])
def test_a_constant_is_one_bin(value: float) -> None:
    histogram = seen(torch.full((2, 9), value), [3], 128)
    assert histogram.counts.sum(1).tolist() == [9, 9]
    assert histogram.counts.max() == 9


def test_memory_does_not_grow_with_the_stream() -> None:
    histogram = Histogram(64)
    sizes = set()
    for step in range(50):
        x = noise(3, 200, seed=step) * 2.0**step
        histogram.update(x, x.amin(1), x.amax(1))
        sizes.add(sum(v.numel() for v in vars(histogram).values() if isinstance(v, Tensor)))
    assert len(sizes) == 1
    assert histogram.counts.sum(1).tolist() == [50 * 200] * 3


def test_double_precision_is_counted_as_what_its_range_is_given_in() -> None:
    """Ranges are float32, whose rounding may lift the smallest value into the next bin."""
    rows = torch.tensor([[1 - 1e-12, 1 - 1e-12, 1.9], [-1 - 1e-12, 0, 1]], dtype=torch.float64)
    histogram = Histogram(2)
    histogram.update(rows, rows.amin(1).float(), rows.amax(1).float())
    assert histogram.counts.sum(1).tolist() == [3, 3]


def test_half_precision_and_many_values() -> None:
    x = noise(1, 2_500_000).bfloat16()
    histogram = seen(x, [], 32)
    edges = histogram.edges[0].numpy()
    assert histogram.counts[0].tolist() == np.histogram(x.float().numpy(), edges)[0].tolist()
