import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quant_nets import GatherConv, noise
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bevquant.errors import BevquantError
from bevquant.nn import MatMul
from bevquant.quant.affine import dequantize, quantize
from bevquant.quant.calibrate import calibrate
from bevquant.quant.layers import (
    Alphas,
    QuantLayer,
    QuantModule,
    Rounding,
    floating,
    quant_modules,
)
from bevquant.quant.prepare import apply
from bevquant.quant.prepare import quantize as quantize_model
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


def _step(foreach: bool) -> Callable[[nn.Linear], None]:
    def step(layer: nn.Linear) -> None:
        layer.weight.grad, layer.bias.grad = layer.weight.detach().clone(), torch.ones(4)
        torch.optim.SGD(layer.parameters(), lr=0.5, foreach=foreach).step()

    return step


def _average(layer: nn.Linear) -> None:
    average = AveragedModel(nn.Linear(4, 4), multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(nn.Linear(4, 4))
    for mine, other in zip(layer.parameters(), average.module.parameters(), strict=True):
        mine.data.copy_(other.data)


def _numpy(layer: nn.Linear) -> None:
    layer.weight.detach().numpy()[1] = 5.0


def _one_bit(layer: nn.Linear) -> None:
    layer.weight.detach().view(torch.int32).numpy()[2, 3] ^= 1 << 30


CHANGES: dict[str, Callable[[nn.Linear], Any]] = {
    "in place": lambda layer: layer.weight.data.mul_(2),
    "negated": lambda layer: layer.weight.data.neg_(),  # which no sum of bits would see
    "channels swapped": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(0)),
    "other data": lambda layer: setattr(layer.weight, "data", noise(4, 4, seed=5)),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(noise(4, 4, seed=6))),
    "NumPy": _numpy,
    "one bit": _one_bit,
    "average": _average,
    "state": lambda layer: layer.load_state_dict(nn.Linear(4, 4).state_dict()),
    "state, assigned": lambda layer: layer.load_state_dict(
        nn.Linear(4, 4).state_dict(), assign=True
    ),
    "optimizer": _step(False),
    "optimizer, foreach": _step(True),
}


@pytest.mark.parametrize("learned", ["nothing", "factors", "integers"])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_weight_is_noticed(change: str, learned: str) -> None:
    """The output is that of a layer which was quantized with the new weights."""
    torch.manual_seed(0)
    x = noise(6, 4)
    quant = quantized(nn.Linear(4, 4), x, W4A8, DEPLOY)
    assert isinstance(quant, QuantLayer)
    if learned == "factors":
        quant.adjust(W4A8, Alphas(torch.full((4, 1), 0.5), (0.5,)))
    if learned == "integers":
        codes = torch.ones(4, 4, dtype=torch.int32)
        quant.learn(W4A8, Rounding(codes, quant.weight_params, torch.zeros(4)))
    with torch.no_grad():
        before = quant(x)
    CHANGES[change](quant.wrapped)
    fresh = quantized(copy.deepcopy(quant.wrapped), x, W4A8, DEPLOY)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        after = quant(x)
        assert torch.equal(quant(x), after)
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh(x))
    assert torch.equal(quant.weight_codes, fresh.weight_codes)
    assert len(caught) == (learned != "nothing")
    for warning in caught:
        assert str(warning.message).startswith("0: its weight or bias has changed since")


@pytest.mark.parametrize("learned", ["factors", "integers"])
def test_a_changed_bias_is_noticed_too(learned: str) -> None:
    x = noise(6, 4)
    quant = quantized(nn.Linear(4, 4), x, W8A8, DEPLOY)
    assert isinstance(quant, QuantLayer)
    with torch.no_grad():
        plain = quant(x)
    if learned == "factors":
        quant.adjust(W8A8, Alphas(torch.tensor(0.5), (1.0,)))
    else:
        quant.learn(W8A8, Rounding(quant.weight_codes, quant.weight_params, torch.zeros(4)))
    quant.wrapped.bias.data.add_(1)
    with torch.no_grad(), pytest.warns(UserWarning, match="weight or bias has changed"):
        torch.testing.assert_close(quant(x), plain + 1)


def test_the_first_question_after_a_change_may_be_any() -> None:
    """What is saved, exported or measured first is no more of the old weight than an output."""
    x = noise(6, 4)
    for ask in ("rounded", "refined", "weight_codes", "weight_params", "learned_bias"):
        quant = quantized(nn.Linear(4, 4), x, W4A8, DEPLOY)
        assert isinstance(quant, QuantLayer)
        rounding = Rounding(quant.weight_codes, quant.weight_params, torch.zeros(4))
        quant.learn(W4A8, rounding)
        quant.adjust(W4A8, Alphas(torch.tensor(0.5), (0.5,)))
        assert quant.rounded[W4A8] is rounding
        quant.wrapped.weight.data.mul_(3)
        fresh = quantized(copy.deepcopy(quant.wrapped), x, W4A8, DEPLOY)
        with pytest.warns(UserWarning, match="weight or bias has changed"):
            answer = getattr(quant, ask)
        if ask in ("rounded", "refined"):
            assert answer == {}
        elif ask == "weight_codes":
            assert torch.equal(answer, fresh.weight_codes)
        elif ask == "weight_params":
            assert torch.equal(answer.scale, fresh.weight_params.scale)
        else:
            assert answer is None
        assert torch.equal(quant.input_params[0].scale, fresh.input_params[0].scale)


def test_training_keeps_no_copies_and_evaluation_sees_its_end() -> None:
    x = noise(6, 4)
    quant = quantized(nn.Linear(4, 4), x, W4A8, DEPLOY)
    optimizer = torch.optim.SGD(quant.wrapped.parameters(), lr=0.1)
    for _ in range(3):
        with torch.no_grad():
            kept = quant(x)
        output = quant(x)
        assert torch.equal(output, kept)
        optimizer.zero_grad()
        output.square().sum().backward()
        optimizer.step()


def test_integers_outlive_a_move_to_another_type_and_a_reload_of_the_same_weights() -> None:
    x = noise(6, 4)
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.copy_(linear.weight.bfloat16())
    quant = quantized(linear, x, W4A8, DEPLOY)
    assert isinstance(quant, QuantLayer)
    rounding = Rounding(torch.ones(4, 4, dtype=torch.int32), quant.weight_params, torch.ones(4))
    quant.learn(W4A8, rounding)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = quant(x)
        quant.to(torch.bfloat16)(x.bfloat16())
        assert torch.equal(quant.to(torch.float32)(x), expected)
        quant.load_state_dict(copy.deepcopy(quant.state_dict()))
        assert torch.equal(quant(x), expected)
        assert torch.equal(copy.deepcopy(quant)(x), expected)


@pytest.mark.parametrize("scheme", [DEPLOY, THESIS], ids=["deploy", "thesis"])
def test_a_changed_range_gives_another_grid(scheme: Scheme) -> None:
    x = noise(6, 4)
    quant = quantized(nn.Linear(4, 4), x, W8A8, scheme)
    (before,) = quant.input_params
    quant.inputs[0].ranges[8].maximum.data.mul_(2)
    quant.inputs[0].ranges[8].minimum.data.mul_(2)
    torch.testing.assert_close(quant.input_params[0].scale, 2 * before.scale)
    quant.inputs[0].ranges[8] = quant.inputs[0].ranges[8].scaled(2)
    torch.testing.assert_close(quant.input_params[0].scale, 4 * before.scale)


def test_gradients_reach_the_float_weight_and_the_input() -> None:
    torch.manual_seed(0)  # an extreme that rounding puts beyond the last half step has none
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
