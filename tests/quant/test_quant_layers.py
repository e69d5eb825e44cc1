from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quant_nets import GatherConv, noise
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.nn import MatMul
from bevquant.quant.affine import dequantize, quantize
from bevquant.quant.calibrate import calibrate
from bevquant.quant.layers import QuantLayer, QuantModule, floating, quant_modules
from bevquant.quant.prepare import apply
from bevquant.quant.prepare import quantize as quantize_model
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.spec import DEPLOY, THESIS, W2A8, W4A8, W8A8, Precision, Scheme

CASES = [
    (nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 9), -2),
    (nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 7, 8), -3),
    (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 3), -4),
    (nn.ConvTranspose1d(4, 6, 2, 2, bias=False), (1, 4, 5), -2),
    (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 5, 4), -3),
    (nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 3, 3), -4),
    (nn.Linear(6, 4), (3, 7, 6), -1),
]


def quantized(layer: nn.Module, x: Tensor, precision: Precision, scheme: Scheme) -> QuantModule:
    model = quantize_model(nn.Sequential(layer), precision, scheme)
    calibrate(model, [x])
    return quant_modules(model)[0]


@pytest.mark.parametrize("precision", [W8A8, W2A8, Precision(16, 4)], ids=str)
@pytest.mark.parametrize("scheme", [DEPLOY, THESIS], ids=["deploy", "thesis"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case[0]).__name__)
def test_forward_is_the_float_layer_on_dequantized_input_and_weight(
    case: tuple[nn.Module, tuple[int, ...], int], scheme: Scheme, precision: Precision
) -> None:
    layer, shape, channel_axis = case
    x = noise(*shape) + 0.3
    quant = quantized(layer, x, precision, scheme)
    weight_params, (input_params,) = quant.weight_params, quant.input_params
    with torch.no_grad():
        actual = quant(x)
        float_weight = layer.weight
        layer.weight = nn.Parameter(dequantize(quant.weight_codes, weight_params))
        expected = layer(dequantize(quantize(x, input_params), input_params))
        layer.weight = float_weight
    assert torch.equal(actual, expected)

    channels = float_weight.shape[quant.weight_axis]
    assert weight_params.scale.numel() == channels
    assert quant.weight_codes.min() >= weight_params.quant_min
    assert quant.weight_codes.max() <= weight_params.quant_max
    assert input_params.scale.numel() == (x.shape[channel_axis] if scheme is THESIS else 1)


def test_weight_scales_follow_the_output_channels() -> None:
    layer = nn.ConvTranspose2d(2, 3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.ones(2, 3, 2, 2) * torch.tensor([1.0, 10, 100])[:, None, None])
    quant = quantized(layer, noise(1, 2, 3, 3), W4A8, DEPLOY)
    assert quant.weight_params.scale.flatten().tolist() == pytest.approx(
        [1 / 7.5, 10 / 7.5, 100 / 7.5]
    )


def test_a_product_quantizes_both_operands() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matmul = MatMul()

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.matmul(pair[0], b=pair[1])

    a, b = noise(2, 3, 4), noise(2, 4, 5).relu()
    model = quantize_model(Product(), Precision(8, 4))
    calibrate(model, [(a, b)])
    params = model.matmul.input_params
    expected = [dequantize(quantize(x, p), p) for x, p in zip((a, b), params, strict=True)]
    assert torch.equal(model((a, b)), expected[0] @ expected[1])
    assert params[0].zero_point > 0
    assert params[1].zero_point == 0


def test_a_declared_layer_keeps_its_other_arguments_float() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GatherConv(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, table=torch.tensor([[0, 1, 5], [4, 3, 2]]))

    x = noise(5, 4)
    model = quantize_model(Sparse(), W8A8)
    calibrate(model, [x])
    conv = model.conv
    (params,) = conv.input_params
    rows = F.pad(dequantize(quantize(x, params), params), (0, 0, 0, 1))
    weight = dequantize(conv.weight_codes, conv.weight_params)
    expected = torch.einsum("nki,oki->no", rows[torch.tensor([[0, 1, 5], [4, 3, 2]])], weight)
    torch.testing.assert_close(model(x), expected)


def test_weights_are_quantized_once_per_bits_and_swapped_by_reference() -> None:
    model = quantize_model(nn.Sequential(nn.Linear(4, 4)), W8A8)
    calibrate(model, [noise(3, 4)])
    layer = model[0]
    seen = []
    layer.wrapped.register_forward_pre_hook(lambda m, _: seen.append(m.weight))
    with torch.no_grad():
        for precision in (W8A8, W4A8, W8A8, W4A8):
            apply(model, precision)(noise(3, 4))
    assert seen[0] is seen[2]
    assert seen[1] is seen[3]
    assert not torch.equal(seen[0], seen[1])


def test_a_changed_weight_is_quantized_anew() -> None:
    model = quantize_model(nn.Sequential(nn.Linear(4, 4)), W8A8)
    calibrate(model, [noise(3, 4)])
    with torch.no_grad():
        before = model(noise(3, 4))
        codes = model[0].weight_codes
        model[0].wrapped.weight.mul_(3)
        assert not torch.equal(model(noise(3, 4)), before)
        assert torch.equal(model[0].weight_codes, codes)
        assert model[0].weight_params.scale.sum() > 0


def test_gradients_reach_the_float_weight_and_the_input() -> None:
    layer = nn.Linear(4, 2)
    quant = quantized(layer, noise(8, 4), W4A8, DEPLOY)
    x = noise(8, 4).requires_grad_()
    quant(x).sum().backward()
    weight = dequantize(quant.weight_codes, quant.weight_params)
    (params,) = quant.input_params
    inputs = dequantize(quantize(x, params), params)
    torch.testing.assert_close(x.grad, weight.sum(0).expand(8, 4))
    torch.testing.assert_close(layer.weight.grad, inputs.sum(0).expand(2, 4))


def test_a_weight_kept_in_inference_mode_serves_gradients_later() -> None:
    layer = nn.Linear(4, 2).requires_grad_(False)
    quant = quantized(layer, noise(8, 4), W4A8, DEPLOY)
    with torch.inference_mode():
        expected = quant(noise(8, 4))
    x = noise(8, 4).requires_grad_()
    y = quant(x)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert x.grad is not None


def test_the_callers_tensor_is_left_alone() -> None:
    x = noise(3, 4)
    quant = quantized(nn.Linear(4, 4), x, W4A8, THESIS)
    with torch.no_grad():
        quant(x)
    assert torch.equal(x, noise(3, 4))


def test_half_precision_runs() -> None:
    x = noise(3, 4)
    model = quantize_model(nn.Sequential(nn.Linear(4, 4)), W8A8)
    calibrate(model, [x])
    expected = model(x)
    actual = model.to(torch.bfloat16)(x.bfloat16())
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, atol=0.05, rtol=0.05)


def test_a_float_layer_has_no_grid_and_says_which() -> None:
    model = quantize_model(nn.Sequential(nn.Linear(4, 4)), W8A8)
    for read in ("input_params", "weight_params", "weight_codes"):
        with pytest.raises(BevquantError, match="0: float or not calibrated"):
            getattr(model[0], read)


def test_a_weight_that_is_not_finite_is_named() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    quant = quantized(layer, noise(3, 4), W8A8, DEPLOY)
    with pytest.raises(BevquantError, match="0: its weight holds NaN"):
        quant(noise(3, 4))


def test_attributes_of_the_float_layer_are_found() -> None:
    conv = nn.Conv2d(3, 5, 3, stride=2)
    quant = quantized(conv, noise(1, 3, 8, 8), W8A8, DEPLOY)
    assert quant.stride == (2, 2)
    assert quant.weight is conv.weight
    with pytest.raises(AttributeError, match="nonsense"):
        _ = quant.nonsense


def test_floating_runs_float_and_comes_back() -> None:
    x = noise(3, 4)
    linear = nn.Linear(4, 4)
    quant = quantized(linear, x, Precision(2, 4), DEPLOY)
    with floating(quant):
        assert torch.equal(quant(x), linear(x))
    assert not torch.equal(quant(x), linear(x))


def test_zero_weights_and_constant_inputs_are_exact() -> None:
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[1] = 0.5
    x = torch.full((2, 4), 3.0)
    for scheme in (DEPLOY, THESIS):
        quant = quantized(linear, x, W8A8, scheme)
        with torch.no_grad():
            torch.testing.assert_close(quant(x), linear(x), atol=0.03, rtol=0)
            assert torch.equal(quant(x)[:, 0], linear.bias[0].expand(2))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(33, 16), (4, 33)),
        (nn.Conv2d(5, 16, 3), (1, 5, 6, 6)),
        (nn.Conv1d(8, 4, 1), (1, 8, 6)),
        (nn.ConvTranspose2d(6, 8, 2, 2), (1, 6, 4, 4)),
    ],
)
def test_8_bit_products_of_neighbours_fit_16_bits(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """vpmaddubsw adds two products of unsigned and signed bytes in a saturating int16."""
    quant = quantized(layer, noise(*shape), W8A8, DEPLOY)
    assert isinstance(quant, QuantLayer)
    rows = quant.weight_codes.movedim(quant.weight_axis, 0).movedim(1, -1).flatten(0, -2)
    first, second = rows[:, ::2], F.pad(rows, (0, rows.shape[1] % 2))[:, 1::2]
    highest = 255 * (first.clamp(min=0) + second.clamp(min=0)).max()
    lowest = 255 * (first.clamp(max=0) + second.clamp(max=0)).min()
    assert highest < 2**15
    assert lowest >= -(2**15)
    assert rows.abs().max() > 80  # about half a bit is given up, not a whole one


def doubled(weight: Tensor) -> None:
    weight.data.mul_(2)


def replaced(weight: Tensor) -> None:
    weight.data = weight.data.flip(0).clone()


def averaged(weight: Tensor) -> None:
    weight.data.copy_(weight.data * 0.3)


def through_numpy(weight: Tensor) -> None:
    array = weight.detach().numpy()
    array *= -1


def one_element(weight: Tensor) -> None:
    weight.data.view(-1)[5] = 3.0


CHANGES = [doubled, replaced, averaged, through_numpy, one_element]


@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_changed_without_a_trace_is_quantized_anew(
    change: Callable[[Tensor], None],
) -> None:
    layer, x = nn.Linear(6, 4), noise(9, 6)
    quant = quantized(layer, x, W8A8, DEPLOY)
    with torch.no_grad():
        quant(x)
        change(layer.weight)
        kept = quant(x)
        fresh = quantized(layer, x, W8A8, DEPLOY)(x)
    assert torch.equal(kept, fresh)


@pytest.mark.parametrize("change", [*CHANGES, "bias", "load_state_dict"])
def test_learned_integers_are_those_of_the_weight_they_were_learned_for(change: Any) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4)), noise(64, 6)
    quantize_model(model, W4A8, DEPLOY)
    calibrate(model, [x])
    reconstruct(model, [x])
    (quant,) = quant_modules(model)
    layer = quant.wrapped
    if change == "bias":
        layer.bias.data += 2
    elif change == "load_state_dict":
        layer.load_state_dict({"weight": torch.randn(4, 6), "bias": torch.randn(4)})
    else:
        change(layer.weight)
    with torch.no_grad(), pytest.warns(UserWarning, match="0: its weight or bias was changed"):
        now = model(x)
    with torch.no_grad():
        fresh = quantized(layer, x, W4A8, DEPLOY)(x)
    assert torch.equal(now, fresh)


def test_learned_integers_outlive_a_move() -> None:
    model, x = nn.Sequential(nn.Linear(6, 4)), noise(64, 6)
    quantize_model(model, W4A8, DEPLOY)
    calibrate(model, [x])
    reconstruct(model, [x])
    with torch.no_grad():
        before = model(x)
        model.double()
        model(x.double())
        model.float()
        assert torch.equal(model(x), before)
