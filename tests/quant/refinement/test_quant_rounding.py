import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_nets import noise
from torch import Tensor

from bevquant.quant.refinement.rounding import Moments, fit

RIDGE = 1e-6


def correlated(samples: int, inputs: int, seed: int) -> Tensor:
    """Inputs [1, samples, inputs] that share a common part, with a mean."""
    return noise(1, samples, inputs, seed=seed) + 2 * noise(1, samples, 1, seed=seed + 1) + 1


def moments_of(x: Tensor, y: Tensor, batches: int = 3) -> Moments:
    moments = Moments()
    for part, wanted in zip(x.chunk(batches, 1), y.chunk(batches, 1), strict=True):
        moments.update(part, wanted)
    return moments


def bounds(weight: Tensor, low: float = -2, high: float = 1) -> tuple[Tensor, Tensor]:
    channels = weight[..., 0]
    return torch.full_like(channels, low), torch.full_like(channels, high)


def error(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Mean square error of each channel [N] with the best bias."""
    difference = (y - x @ weight.transpose(1, 2)).double()
    return difference.var(1, correction=0).flatten()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_streamed_moments_are_those_of_all_samples(seed: int, groups: int) -> None:
    x = 100 + noise(groups, 30, 4, seed=seed)
    y = noise(groups, 30, 2, seed=seed + 1) - 50
    moments = moments_of(x, y, batches=4)
    mean_x, mean_y = moments.means()
    gram, cross = moments.covariances()
    for g in range(groups):
        both = torch.cov(torch.cat((x[g], y[g]), 1).double().t(), correction=0)
        torch.testing.assert_close(gram[g], both[:4, :4], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cross[g], both[:4, 4:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean_x, x.double().mean(1))
    torch.testing.assert_close(mean_y, y.double().mean(1))


def test_no_samples_change_nothing() -> None:
    moments = Moments()
    moments.update(noise(1, 0, 3), noise(1, 0, 2))
    assert moments.count == 0


def test_nearly_as_good_as_all_integers_with_their_best_scales() -> None:
    x, weight = correlated(200, 5, seed=0), noise(1, 12, 5, seed=5)
    y = x @ weight.transpose(1, 2)
    steps, scale = fit(moments_of(x, y), weight, *bounds(weight), RIDGE)
    found = error(x, y, steps * scale[..., None])

    every = torch.tensor(list(itertools.product((-2.0, -1, 0, 1), repeat=5)))[None]
    best = []
    for channel in range(12):
        products = x @ every.transpose(1, 2)
        products = (products - products.mean(1, keepdim=True))[0].double()
        wanted = (y[0, :, channel] - y[0, :, channel].mean()).double()
        power = products.square().sum(0)
        # scale = <p, y> / <p, p>, if positive; the error it leaves is |y|^2 - <p, y>^2 / <p, p>.
        gain = (products.t() @ wanted).clamp_min(0).square() / power.clamp_min(1e-9)
        best.append((wanted.square().sum() - gain.max()) / len(wanted))
    ratio = found / torch.stack(best)
    assert ratio.min() > 0.999  # brute force is a bound
    assert ratio.median() < 1.05
    assert ratio.mean() < 1.2


@pytest.mark.parametrize("span", [(-2, 1), (-7, 7), (0, 3), (-1, 2)])
def test_whole_numbers_in_bounds_and_better_than_rounding_one_by_one(
    span: tuple[int, int],
) -> None:
    found = one_by_one = 0.0
    for seed in range(8):
        x, weight = correlated(100, 9, seed), noise(1, 6, 9, seed=seed + 7)
        y = x @ weight.transpose(1, 2)
        steps, scale = fit(moments_of(x, y), weight, *bounds(weight, *span), RIDGE)
        assert torch.equal(steps, steps.round())
        assert span[0] <= steps.min() <= steps.max() <= span[1]
        assert (scale > 0).all()
        step = weight.abs().amax(-1, keepdim=True) / max(map(abs, span))
        nearest = (weight / step).round().clamp(*span) * step
        found += float(error(x, y, steps * scale[..., None]).sum())
        one_by_one += float(error(x, y, nearest).sum())
    assert found < 0.8 * one_by_one


def test_what_was_lost_before_the_layer_is_made_good() -> None:
    """Inputs that reach the layer at half their size are answered by twice the weight."""
    x, weight = correlated(400, 8, seed=3), noise(1, 4, 8, seed=4)
    y = x @ weight.transpose(1, 2)
    steps, scale = fit(moments_of(x / 2, y), weight, *bounds(weight, -127, 127), RIDGE)
    torch.testing.assert_close(steps * scale[..., None], 2 * weight, atol=0.05, rtol=0.05)


def test_inputs_that_never_occur_keep_their_weights() -> None:
    x, weight = noise(1, 100, 6), noise(1, 3, 6, seed=1)
    x[..., 2] = 0
    y = x @ weight.transpose(1, 2)
    steps, scale = fit(moments_of(x, y), weight, *bounds(weight, -127, 127), 0.01)
    torch.testing.assert_close(
        (steps * scale[..., None])[..., 2], weight[..., 2], atol=0.02, rtol=0
    )


def test_groups_are_fitted_on_their_own() -> None:
    x = torch.cat((correlated(90, 5, 0), correlated(90, 5, 9)))
    weight = noise(2, 3, 5)
    y = x @ weight.transpose(1, 2)
    both = fit(moments_of(x, y), weight, *bounds(weight), RIDGE)
    for g in range(2):
        part = slice(g, g + 1)
        alone = fit(moments_of(x[part], y[part]), weight[part], *bounds(weight[part]), RIDGE)
        assert torch.equal(both[0][part], alone[0])
        torch.testing.assert_close(both[1][part], alone[1])
