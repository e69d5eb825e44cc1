import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_nets import noise

from bevquant.quant.affine import Range
from bevquant.quant.observers import MinMax, min_max
from bevquant.quant.spec import PerChannel, PerTensor


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.sampled_from((-1, -3, None)))
def test_streamed_extremes_are_those_of_all_the_data(sizes: list[int], axis: int | None) -> None:
    observer = MinMax(PerTensor() if axis is None else PerChannel(axis))
    batches = [noise(size, 3, 4, 2, seed=seed) for seed, size in enumerate(sizes)]
    for batch in batches:
        observer.update(batch)
    everything = torch.cat(batches).double().numpy()
    if everything.size == 0:
        assert observer.range is None
        return
    others = None if axis is None else tuple(a for a in range(4) if a != axis + 4)
    assert observer.range is not None
    assert observer.range.minimum.flatten().tolist() == everything.min(others).flatten().tolist()
    assert observer.range.maximum.flatten().tolist() == everything.max(others).flatten().tolist()


def test_a_channel_is_the_same_with_and_without_batch_dimensions() -> None:
    observer = MinMax(PerChannel(-1))
    observer.update(torch.tensor([[1.0, -1.0]]))
    observer.update(torch.tensor([[[3.0, 0.0], [0.0, -5.0]]]))
    observer.update(torch.tensor([-2.0, 2.0]))
    assert observer.range is not None
    assert observer.range.minimum.tolist() == [-2, -5]
    assert observer.range.maximum.tolist() == [3, 2]


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
