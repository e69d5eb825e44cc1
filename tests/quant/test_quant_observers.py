import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_nets import noise
from torch import Tensor

from bevquant.errors import BevquantError
from bevquant.quant.affine import Range
from bevquant.quant.observers import MinMax, MovingAverage, Observer, min_max
from bevquant.quant.spec import PerChannel, PerGroup, PerTensor, TensorScheme


def watched(observer: Observer, batches: list[Tensor], axis: int | None) -> dict[int, Range]:
    scheme = TensorScheme(symmetric=False, per_channel=axis is not None)
    statistic = observer.watch(scheme, axis)
    assert statistic.ranges() == {}
    for batch in batches:
        statistic.update(batch, min_max(batch, scheme.granularity(axis)))
    return statistic.ranges()


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from((-1, -3, None)))
def test_streamed_extremes_are_those_of_all_the_data(sizes: list[int], axis: int | None) -> None:
    batches = [noise(size, 3, 4, 2, seed=seed) for seed, size in enumerate(sizes)]
    seen = watched(MinMax(), batches, axis)
    everything = torch.cat(batches).double().numpy()
    others = None if axis is None else tuple(a for a in range(4) if a != axis + 4)
    assert set(seen) == {4, 8, 16}
    for values in seen.values():
        assert values.minimum.flatten().tolist() == everything.min(others).flatten().tolist()
        assert values.maximum.flatten().tolist() == everything.max(others).flatten().tolist()


def test_a_moving_average_is_that_of_the_formula() -> None:
    batches = [noise(6, 3, seed=seed) * (seed + 1) for seed in range(4)]
    for axis in (None, -1):
        others = None if axis is None else 0
        low = batches[0].numpy().min(others)
        for batch in batches[1:]:
            low = 0.7 * low + 0.3 * batch.numpy().min(others)
        seen = watched(MovingAverage(0.3), batches, axis)
        assert seen[8].minimum.flatten().tolist() == pytest.approx(low.flatten().tolist())
    whole = watched(MovingAverage(1), batches, None)
    assert whole[4].maximum == batches[-1].max()
    with pytest.raises(BevquantError, match="momentum 0"):
        MovingAverage(0)


def test_a_channel_is_the_same_with_and_without_batch_dimensions() -> None:
    batches = [
        torch.tensor([[1.0, -1.0]]),
        torch.tensor([[[3.0, 0.0], [0.0, -5.0]]]),
        torch.tensor([-2.0, 2.0]),
    ]
    seen = watched(MinMax(), batches, -1)
    assert seen[8].minimum.tolist() == [-2, -5]
    assert seen[8].maximum.tolist() == [3, 2]


def test_groups_of_inputs_have_the_extremes_of_their_rows() -> None:
    for x, granularity in (
        (noise(4, 7), PerGroup(3, -2, -1)),
        (noise(4, 7, 2, 3), PerGroup(3, -4, -3)),
        (noise(7, 4, 2), PerGroup(3, -2, -3)),  # a transposed convolution
        (noise(4, 2, 7), PerGroup(3, -3, -1)),  # channels last
    ):
        low, high = min_max(x, granularity)
        rows = x.movedim((granularity.axis, granularity.input_axis), (0, 1))
        lows = low.movedim((granularity.axis, granularity.input_axis), (0, 1))
        assert ((low <= x) & (x <= high)).all()
        for output in range(4):
            for i in range(7):
                group = rows[output, i // 3 * 3 : i // 3 * 3 + 3]
                assert (lows[output, i] == group.min()).all()


def test_the_range_broadcasts_against_the_tensor() -> None:
    x = noise(2, 3, 4, 5)
    low, high = min_max(x, PerChannel(-3))
    assert low.shape == (3, 1, 1)
    assert ((low <= x) & (x <= high)).all()


def test_nan_and_infinity_are_noticed() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.zeros(3, 2)
        x[1, 1] = bad
        for granularity in (PerTensor(), PerChannel(-1)):
            assert not min_max(x, granularity).finite
    assert Range(torch.zeros(2), torch.ones(2)).finite
