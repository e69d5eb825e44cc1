import itertools

import numpy as np
import pytest
import torch
from quant_nets import ResNet, noise, seeded
from torch import Tensor

from bevquant.errors import BevquantError
from bevquant.quant.affine import Range, params_from_range, simulate
from bevquant.quant.calibrate import calibrate
from bevquant.quant.clipping import MSE, Entropy, Percentile
from bevquant.quant.layers import quant_modules
from bevquant.quant.observers import MIN_MAX, MovingAverage, Observer, min_max
from bevquant.quant.prepare import quantize
from bevquant.quant.spec import DEPLOY, THESIS, W4A8, PerTensor, QuantSpec, Scheme, TensorScheme

OBSERVERS = (Percentile(99.0, bins=512), MSE(bins=512), Entropy(bins=512))


def watched(
    observer: Observer, batches: list[Tensor], axis: int | None = None, symmetric: bool = False
) -> dict[int, Range]:
    scheme = TensorScheme(symmetric, per_channel=axis is not None)
    statistic = observer.watch(scheme, axis)
    assert statistic.ranges() == {}
    for batch in batches:
        statistic.update(batch, min_max(batch, scheme.granularity(axis)))
    return statistic.ranges()


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    """Normal values and a few large ones, to one side more than to the other."""
    x = noise(*shape, seed=seed)
    return torch.where(noise(*shape, seed=seed + 99) > 2.5, x * 8 + 4, x)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 100.0])
def test_a_percentile_is_numpys_but_for_a_bin(percentile: float) -> None:
    x = heavy_tailed(4000)
    values = watched(Percentile(percentile), list(x.split(1500)))[8]
    width = 4 * float(x.max() - x.min()) / 2048
    high = np.percentile(x.numpy(), percentile, method="inverted_cdf")
    low = -np.percentile(-x.numpy(), percentile, method="inverted_cdf")
    assert high <= float(values.maximum) <= high + width
    assert low - width <= float(values.minimum) <= low


def test_percentiles_of_channels() -> None:
    x = heavy_tailed(50, 3, 20) * torch.tensor([1.0, 10, 1000])[:, None]
    values = watched(Percentile(99.0), list(x.split(20)), axis=-2)[4]
    assert values.maximum.shape == (3, 1)
    for channel, high in enumerate(values.maximum.flatten().tolist()):
        of = x[:, channel].flatten().numpy()
        expected = np.percentile(of, 99.0, method="inverted_cdf")
        assert expected <= high <= expected + 4 * (of.max() - of.min()) / 2048


def error(x: Tensor, low: float, high: float, spec: QuantSpec, power: float = 2) -> float:
    grid = params_from_range(Range(torch.tensor(low), torch.tensor(high)), spec)
    return float((simulate(x, grid).double() - x.double()).abs().pow(power).mean())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("power", [2.0, 1.0, 2.4])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("positive", [False, True])
def test_mse_is_as_good_as_a_dense_search_on_the_values(
    bits: int, power: float, symmetric: bool, positive: bool
) -> None:
    x = heavy_tailed(3000)
    x = x.relu() if positive else x
    spec = QuantSpec(bits, symmetric, PerTensor())
    values = watched(MSE(power), [x], symmetric=symmetric)[bits]
    found = error(x, float(values.minimum), float(values.maximum), spec, power)
    low, high = float(x.min()), float(x.max())
    shares = np.linspace(0.05, 1, 40)
    both = ((s, s) for s in shares) if symmetric or positive else itertools.product(shares, shares)
    best = min(error(x, low * a, high * b, spec, power) for a, b in both)
    assert found <= 1.03 * best
    if bits == 4:
        assert found < 0.95 * error(x, low, high, spec, power)


def divergence(counts: np.ndarray, centres: np.ndarray, grid: tuple[float, int, int]) -> float:
    """Kullback and Leibler's, bin by bin, in loops."""
    scale, low, high = grid
    codes = [int(np.rint(c / scale)) for c in centres]
    reference, members = np.zeros(len(counts)), {}
    inside = [i for i, code in enumerate(codes) if low <= code <= high]
    for i, (code, count) in enumerate(zip(codes, counts, strict=True)):
        nearest = i if low <= code <= high else inside[0] if code < low else inside[-1]
        reference[nearest] += count
        if nearest == i and count:
            members.setdefault(code, []).append(i)
    quantized = np.zeros(len(counts))
    for group in members.values():
        quantized[group] = counts[group].sum() / len(group)
    p, q = reference / reference.sum(), quantized / quantized.sum()
    return sum(a * np.log(a / b) if b else np.inf for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("positive", [False, True])
def test_entropy_is_the_least_divergence_by_its_definition(positive: bool) -> None:
    x = heavy_tailed(20000)
    x = x.relu() if positive else x
    values = watched(Entropy(bins=256), [x])[4]
    width = 2.0 ** np.ceil(np.log2(float(x.max() - x.min()) / 255))
    edges = np.arange(np.floor(float(x.min()) / width), 256) * width
    edges = edges[: np.searchsorted(edges, float(x.max()), side="right") + 1]
    counts = np.histogram(x.numpy(), edges)[0].astype(float)
    counts[(edges[:-1] <= 0) & (edges[1:] > 0)] = 0  # 0 is exact on every grid
    centres = (edges[:-1] + edges[1:]) / 2

    def cost(low: float, high: float) -> float:
        ends = Range(torch.tensor(low), torch.tensor(high))
        grid = params_from_range(ends, QuantSpec(4, False, PerTensor()))
        zero = int(grid.zero_point)
        return divergence(counts, centres, (float(grid.scale), -zero, 15 - zero))

    shares = np.linspace(0.05, 1, 12)
    lows = [1.0] if positive else shares
    best = min(cost(a * float(x.min()), b * float(x.max())) for a in lows for b in shares)
    found = cost(float(values.minimum), float(values.maximum))
    assert found <= best + 1e-3
    assert found < cost(float(x.min()), float(x.max()))


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("axis", [None, -1])
def test_streamed_ranges_are_those_of_all_the_data(observer: Observer, axis: int | None) -> None:
    x = heavy_tailed(600, 2)
    whole = watched(observer, [x], axis)
    streamed = watched(observer, list(x.split([1, 5, 300, 294])), axis)
    for bits, values in whole.items():
        assert torch.equal(values.minimum, streamed[bits].minimum)
        assert torch.equal(values.maximum, streamed[bits].maximum)
        if axis is None:
            continue
        for channel in range(2):  # a channel does not depend on the others
            alone = watched(observer, [x[:, channel]])[bits]
            assert values.minimum[channel] == alone.minimum
            assert values.maximum[channel] == alone.maximum


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda o: type(o).__name__)
def test_few_bits_are_clipped_more_and_16_next_to_nothing(observer: Observer) -> None:
    x = heavy_tailed(5000)
    ranges = watched(observer, [x])
    widths = [float(ranges[bits].maximum - ranges[bits].minimum) for bits in (4, 8, 16)]
    assert widths == sorted(widths)
    assert widths[-1] <= float(x.max() - x.min()) * (1 + 1e-6)
    if not isinstance(observer, Percentile):
        assert widths[0] < 0.9 * widths[-1]
        assert widths[-1] > 0.97 * float(x.max() - x.min())


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_constant_channels_stay_exact(observer: Observer, value: float) -> None:
    x = torch.stack((torch.full((50,), value), noise(50)), -1)
    for bits, values in watched(observer, [x, x], axis=-1).items():
        grid = params_from_range(values, QuantSpec(bits, False, PerTensor()))
        restored = simulate(x, grid)
        assert torch.allclose(restored[:, 0], x[:, 0], rtol=1e-4)


@pytest.mark.parametrize("scheme", [DEPLOY, THESIS], ids=["deploy", "thesis"])
@pytest.mark.parametrize("observer", [*OBSERVERS, MovingAverage()], ids=lambda o: type(o).__name__)
def test_a_network_is_calibrated_with_any_observer(observer: Observer, scheme: Scheme) -> None:
    x = heavy_tailed(2, 3, 8, 8)
    model = seeded(ResNet(4))
    with torch.no_grad():
        expected = model(x)
        quantize(model, W4A8, scheme)
        calibrate(model, [x], observer=MIN_MAX)
        extremes = {layer.name: layer.inputs[0].ranges[8] for layer in quant_modules(model)}
        calibrate(model, [x], observer=observer)
        assert torch.corrcoef(torch.stack((model(x).flatten(), expected.flatten())))[0, 1] > 0.8
    for layer in quant_modules(model):
        values = layer.inputs[0].ranges[8]
        assert values.minimum.shape == extremes[layer.name].minimum.shape
        assert (values.minimum >= extremes[layer.name].minimum.clamp(max=0)).all()


def test_wrong_settings_are_refused() -> None:
    for wrong in (
        lambda: Percentile(40),
        lambda: Percentile(bins=1),
        lambda: MSE(power=0),
        lambda: MSE(bins=1),
        lambda: Entropy(bins=0),
    ):
        with pytest.raises(BevquantError, match="give"):
            wrong()
