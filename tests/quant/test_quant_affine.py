from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bevquant.quant.affine import (
    QuantParams,
    Range,
    dequantize,
    params_from_range,
    quantize,
    simulate,
)
from bevquant.quant.spec import PerChannel, PerTensor, QuantSpec

BITS = st.sampled_from((2, 3, 4, 6, 8, 16))
FLOATS = st.floats(-1e4, 1e4, width=32)
SCALES = st.floats(2.0**-20, 2.0**10, width=32)


@st.composite
def params(draw: st.DrawFn, scales: st.SearchStrategy[float] = SCALES) -> QuantParams:
    spec = QuantSpec(draw(BITS), draw(st.booleans()), PerTensor())
    zero = 0 if spec.symmetric else draw(st.integers(spec.quant_min, spec.quant_max))
    scale = torch.tensor(draw(scales), dtype=torch.float32)
    return QuantParams(scale, torch.tensor(zero).int(), spec.quant_min, spec.quant_max)


@st.composite
def values(draw: st.DrawFn, scale: float) -> torch.Tensor:
    """Any values, and values half way between two codes or next to that."""
    ties = st.integers(-40000, 40000).map(lambda n: float(np.float32((n + 0.5) * scale)))
    near = st.tuples(ties, st.sampled_from((-np.inf, np.inf))).map(
        lambda pair: float(np.nextafter(np.float32(pair[0]), np.float32(pair[1])))
    )
    return torch.tensor(draw(st.lists(FLOATS | ties | near, min_size=1, max_size=20)))


def exact_code(x: float, params: QuantParams) -> int:
    """Integers and fractions only, after the one float32 division that defines the codes."""
    quotient = Fraction(float(np.float32(x) / np.float32(params.scale.item())))
    code = round(quotient) + int(params.zero_point)  # Python rounds halves to even
    return min(max(code, params.quant_min), params.quant_max)


@settings(deadline=None)
@given(st.data())
def test_codes_and_values_are_those_of_exact_integer_arithmetic(data: st.DataObject) -> None:
    grid = data.draw(params())
    x = data.draw(values(grid.scale.item()))
    before = x.clone()
    codes = quantize(x, grid)
    assert codes.dtype == torch.int32
    assert codes.tolist() == [exact_code(value, grid) for value in x.tolist()]
    scale = Fraction(grid.scale.item())
    exact = [float(scale * (code - int(grid.zero_point))) for code in codes.tolist()]
    expected = torch.tensor(exact, dtype=torch.float64).float()
    assert torch.equal(dequantize(codes, grid), expected)
    assert torch.equal(simulate(x, grid), expected)
    assert torch.equal(x, before)


@settings(deadline=None)
@given(st.data())
def test_on_a_power_of_two_scale_ties_go_to_the_even_code(data: st.DataObject) -> None:
    grid = data.draw(params(st.integers(-10, 5).map(lambda n: 2.0**n)))
    n = data.draw(st.integers(grid.quant_min, grid.quant_max - 1)) - int(grid.zero_point)
    x = torch.tensor([(n + 0.5) * grid.scale.item()])
    step = int(quantize(x, grid) - grid.zero_point)
    assert step in (n, n + 1)
    assert step % 2 == 0


@settings(deadline=None)
@given(st.data())
def test_torchs_reference_agrees_where_its_reciprocal_is_exact(data: st.DataObject) -> None:
    grid = data.draw(params(st.integers(-10, 5).map(lambda n: 2.0**n)))
    x = data.draw(values(grid.scale.item()))
    zero = int(grid.zero_point)
    expected = torch.fake_quantize_per_tensor_affine(
        x, grid.scale.item(), zero, grid.quant_min, grid.quant_max
    )
    assert torch.equal(simulate(x, grid), expected)


@settings(deadline=None)
@given(st.sampled_from((2, 3, 4, 6, 8, 16)), st.booleans(), st.data())
def test_torchs_reference_per_channel_agrees(
    bits: int, symmetric: bool, data: st.DataObject
) -> None:
    spec = QuantSpec(bits, symmetric, PerChannel(-2))
    powers = st.integers(-10, 5).map(lambda n: 2.0**n)
    scale = torch.tensor(data.draw(st.lists(powers, min_size=2, max_size=2)))
    zeros = st.just(0) if symmetric else st.integers(0, spec.quant_max)
    zero = torch.tensor([data.draw(zeros) for _ in range(2)]).int()
    grid = QuantParams(scale[:, None], zero[:, None], spec.quant_min, spec.quant_max)
    x = torch.stack([data.draw(values(s)).repeat(20)[:20] for s in scale.tolist()])[None]
    expected = torch.fake_quantize_per_channel_affine(
        x, scale, zero, 1, spec.quant_min, spec.quant_max
    )
    assert torch.equal(simulate(x, grid), expected)


@settings(deadline=None)
@given(st.data())
def test_torchs_integer_tensors_agree(data: st.DataObject) -> None:
    scale = data.draw(st.integers(-10, 5).map(lambda n: 2.0**n))
    # Only with zero point 0: torch adds it in float32 before it rounds.
    grid = QuantParams(torch.tensor(scale), torch.tensor(0).int(), 0, 255)
    x = data.draw(values(scale))
    integer = torch.quantize_per_tensor(x, scale, 0, torch.quint8)
    assert torch.equal(quantize(x, grid), integer.int_repr().int())
    assert torch.equal(simulate(x, grid), integer.dequantize())
    both, zeros = torch.tensor([scale, 2 * scale]), torch.zeros(2, dtype=torch.int32)
    grid = QuantParams(both[:, None], zeros[:, None], 0, 255)
    x = torch.stack((x, 2 * x))
    integer = torch.quantize_per_channel(x, both, zeros, 0, torch.quint8)
    assert torch.equal(quantize(x, grid), integer.int_repr().int())


UNSIGNED = {4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}
SIGNED = {
    2: TensorProto.INT4,
    3: TensorProto.INT4,
    4: TensorProto.INT4,
    6: TensorProto.INT8,
    8: TensorProto.INT8,
    16: TensorProto.INT16,
}


@cache
def onnx_reference(kind: int) -> ReferenceEvaluator:
    """QuantizeLinear and DequantizeLinear per channel, in an integer type."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
        ],
        "reference",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("z", kind, None),
        ],
        [
            helper.make_tensor_value_info("q", kind, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


@settings(deadline=None)
@given(st.sampled_from((4, 8, 16)), st.data())
def test_onnx_reference_operators_agree(bits: int, data: st.DataObject) -> None:
    spec = QuantSpec(bits, False, PerChannel(-2))
    # The reference casts to int32 before it saturates, so quotients must fit.
    scales = st.floats(2.0**-15, 2.0**10, width=32)
    scale = torch.tensor(data.draw(st.lists(scales, min_size=2, max_size=2)))
    zero = torch.tensor([data.draw(st.integers(0, spec.quant_max)) for _ in range(2)]).int()
    grid = QuantParams(scale[:, None], zero[:, None], spec.quant_min, spec.quant_max)
    x = torch.stack([data.draw(values(s)).repeat(20)[:20] for s in scale.tolist()])[None]
    dtype = helper.tensor_dtype_to_np_dtype(UNSIGNED[bits])
    feed = {"x": x.numpy(), "s": scale.numpy(), "z": zero.numpy().astype(dtype)}
    codes, restored = onnx_reference(UNSIGNED[bits]).run(None, feed)
    assert quantize(x, grid).tolist() == codes.astype(int).tolist()
    assert torch.equal(simulate(x, grid), torch.from_numpy(restored))


@settings(deadline=None)
@given(st.sampled_from((2, 3, 4, 6, 8, 16)), st.data())
def test_onnx_reference_operators_agree_on_weights(bits: int, data: st.DataObject) -> None:
    """Signed types hold more than our codes, which are symmetric: what is beyond is clipped."""
    spec = QuantSpec(bits, True, PerChannel(-2))
    scales = st.floats(2.0**-15, 2.0**10, width=32)
    scale = torch.tensor(data.draw(st.lists(scales, min_size=2, max_size=2)))
    zero = torch.zeros(2, 1, dtype=torch.int32)
    grid = QuantParams(scale[:, None], zero, spec.quant_min, spec.quant_max)
    x = torch.stack([data.draw(values(s)).repeat(20)[:20] for s in scale.tolist()])[None]
    dtype = helper.tensor_dtype_to_np_dtype(SIGNED[bits])
    feed = {"x": x.numpy(), "s": scale.numpy(), "z": zero.flatten().numpy().astype(dtype)}
    codes, _ = onnx_reference(SIGNED[bits]).run(None, feed)
    ours = quantize(x, grid)
    assert ours.tolist() == codes.astype(int).clip(spec.quant_min, spec.quant_max).tolist()
    feed["x"] = dequantize(ours, grid).numpy()
    again, restored = onnx_reference(SIGNED[bits]).run(None, feed)
    assert torch.equal(simulate(x, grid), torch.from_numpy(restored))
    assert ours.tolist() == again.astype(int).tolist()


@settings(deadline=None)
@given(FLOATS, FLOATS, BITS, st.booleans())
def test_a_grid_from_a_range_keeps_zero_and_errs_by_half_a_step(
    a: float, b: float, bits: int, symmetric: bool
) -> None:
    low, high = sorted((a, b))
    grid = params_from_range(
        Range(torch.tensor(low), torch.tensor(high)), QuantSpec(bits, symmetric, PerTensor())
    )
    scale = grid.scale.item()
    assert scale > 0
    assert grid.quant_min <= grid.zero_point <= grid.quant_max
    assert simulate(torch.zeros(1), grid) == 0
    if low >= 0 or symmetric:
        assert grid.zero_point == 0
    x = torch.linspace(low, high, 101)
    # Rounding the zero point may push one end of an asymmetric range half a step off its code.
    steps = 0.5 if symmetric else 1.0
    assert (simulate(x, grid) - x).abs().max() <= scale * (steps + 1e-4) + 1e-7 * abs(x).max()


@settings(deadline=None)
@example(-1.0, 0.0, 8)
@example(-1.0, 0.25, 2)
@example(-1.0, 1.0, 4)
@example(0.0, 1.0, 3)
@given(FLOATS, FLOATS, BITS)
def test_a_symmetric_scale_puts_the_wider_side_half_a_step_beyond_its_last_code(
    a: float, b: float, bits: int
) -> None:
    """Codes are -7 to 7 of 4 bits; only of 2 bits there is one more below 0 than above."""
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    most = 2 ** (bits - 1) - 1
    least = -2 if bits == 2 else -most
    below = Fraction(low) / (least - Fraction(1, 2))
    above = Fraction(high) / (most + Fraction(1, 2))
    expected = np.float32(float(max(below, above)))
    grid = params_from_range(
        Range(torch.tensor(min(a, b)), torch.tensor(max(a, b))), QuantSpec(bits, True, PerTensor())
    )
    if expected >= np.finfo(np.float32).tiny:
        assert grid.scale.item() == pytest.approx(float(expected), rel=1.2e-7)
    if low < 0 and below >= above and expected > 1e-30:
        assert quantize(torch.tensor([low]), grid) == grid.quant_min


@settings(deadline=None)
@given(st.floats(-1e4, 0, width=32), st.floats(0, 1e4, width=32), BITS)
def test_a_zero_point_is_the_code_nearest_to_0(low: float, high: float, bits: int) -> None:
    grid = params_from_range(
        Range(torch.tensor(low), torch.tensor(high)), QuantSpec(bits, False, PerTensor())
    )
    exact = grid.quant_min - Fraction(low) / Fraction(grid.scale.item())
    inside = min(max(exact, Fraction(grid.quant_min)), Fraction(grid.quant_max))
    assert abs(int(grid.zero_point) - inside) <= Fraction(1, 2) + Fraction(1, 10**6)


@pytest.mark.parametrize(
    ("steps", "zero"), [(2.25, 2), (2.75, 3), (2.5, 2), (3.5, 4), (0.5, 0), (254.75, 255)]
)
def test_a_zero_point_between_codes_is_rounded_halves_to_even(steps: float, zero: int) -> None:
    low, high = -steps / 8, (255 - steps) / 8  # a scale of 1/8, exactly
    grid = params_from_range(
        Range(torch.tensor(low), torch.tensor(high)), QuantSpec(8, False, PerTensor())
    )
    assert grid.scale == 0.125
    assert grid.zero_point == zero


def test_two_symmetric_bits_use_four_levels() -> None:
    grid = params_from_range(
        Range(torch.tensor(-3.0), torch.tensor(3.0)), QuantSpec(2, True, PerTensor())
    )
    levels = simulate(torch.linspace(-3, 3, 101), grid).unique()
    assert levels.tolist() == [-4.0, -2.0, 0.0, 2.0]


def test_a_range_too_small_for_a_scale_becomes_zero() -> None:
    for extreme in (0.0, 1e-39):
        grid = params_from_range(
            Range(torch.tensor(-extreme), torch.tensor(extreme)), QuantSpec(8, True, PerTensor())
        )
        assert grid.scale == 1
        assert simulate(torch.tensor([extreme]), grid) == 0


def test_a_range_of_the_largest_floats_does_not_overflow() -> None:
    top = torch.finfo(torch.float32).max
    grid = params_from_range(
        Range(torch.tensor(-top), torch.tensor(top)), QuantSpec(8, False, PerTensor())
    )
    assert grid.scale.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_rounded_in_float32(dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 1001).to(dtype)
    grid = QuantParams(torch.tensor(0.01), torch.tensor(300, dtype=torch.int32), 0, 65535)
    assert torch.equal(quantize(x, grid), quantize(x.float(), grid))
    assert torch.equal(simulate(x, grid), simulate(x.float(), grid).to(dtype))


def test_nan_stays_nan() -> None:
    grid = QuantParams(torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), 0, 255)
    assert simulate(torch.tensor([float("nan")]), grid).isnan().all()


def test_gradients_pass_straight_through_inside_the_range() -> None:
    grid = QuantParams(torch.tensor(0.5), torch.tensor(2, dtype=torch.int32), 0, 15)
    x = torch.tensor([-1.3, -1.2, 0.1, 6.7, 6.8], requires_grad=True)
    y = simulate(x, grid)
    y.backward(torch.arange(1.0, 6.0))
    # codes 0..15 about zero point 2: values -1.0..6.5, and half a step beyond
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 0]
    assert torch.equal(y.detach(), simulate(x.detach(), grid))


@settings(deadline=None)
@given(st.data())
def test_gradients_are_those_of_the_formula(data: st.DataObject) -> None:
    grid = data.draw(params(st.integers(-10, 5).map(lambda n: 2.0**n)))
    x = data.draw(values(grid.scale.item())).requires_grad_()
    weights = torch.arange(1.0, len(x) + 1)
    simulate(x, grid).backward(weights)
    scale = Fraction(grid.scale.item())
    first, last = (code - int(grid.zero_point) for code in (grid.quant_min, grid.quant_max))
    half = Fraction(1, 2)
    inside = [(first - half) * scale <= Fraction(v) <= (last + half) * scale for v in x.tolist()]
    assert x.grad is not None
    assert x.grad.tolist() == [w * i for w, i in zip(weights.tolist(), inside, strict=True)]

    ties = [(Fraction(v) / scale).denominator == 2 for v in x.tolist()]
    y = x.detach().clone().requires_grad_()
    zero = int(grid.zero_point)
    torch.fake_quantize_per_tensor_affine(
        y, grid.scale.item(), zero, grid.quant_min, grid.quant_max
    ).backward(weights)
    assert y.grad is not None
    for ours, theirs, tie in zip(x.grad.tolist(), y.grad.tolist(), ties, strict=True):
        assert tie or ours == theirs


def test_gradients_pass_by_channel() -> None:
    grid = QuantParams(torch.tensor([[1.0], [10.0]]), torch.zeros(2, 1, dtype=torch.int32), -7, 7)
    x = torch.tensor([[7.4, 7.6], [74.0, 76.0]], requires_grad=True)
    simulate(x, grid).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 0], [1, 0]]
