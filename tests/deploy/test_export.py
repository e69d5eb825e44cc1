import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from bevquant.deploy import qdq, run_openvino
from bevquant.deploy.artefact import read
from bevquant.deploy.engines import open_engine
from bevquant.deploy.export import export_module
from bevquant.deploy.lint import lint
from bevquant.deploy.ranges import fit_bias
from bevquant.errors import BevquantError
from bevquant.nn import Einsum, MatMul
from bevquant.quant.calibrate import calibrate
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply, quantize
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.spec import THESIS, W2A8, W4A8, W8A8, W16A16, Precision

STEP = 0.03
ZERO = 100


def on_grid(*shape: int) -> Tensor:
    """Values whose 8-bit grid is known: scale STEP, zero point ZERO, every value on it."""
    codes = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    codes.view(-1)[:2] = torch.tensor((0, 255))
    return (codes - ZERO) * STEP


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matmul = MatMul()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.matmul(a, b)


class Mixed(nn.Module):
    """Every kind of layer, one input of two layers, one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.left = nn.Linear(6, 6)
        self.right = nn.Linear(6, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x = self.up(self.conv(x).relu()).permute(0, 2, 3, 1)
        x = self.left(x).relu() + self.right(x)
        x = self.right(self.norm(x))
        return self.out(x.flatten(0, 2).index_select(0, rows)), x


def quantized(model: nn.Module, *inputs: Tensor, precision: Precision | BitPolicy = W8A8):
    quantize(model.eval(), precision)
    calibrate(model, [inputs], lambda model, batch: model(*batch))
    return model


def simulate(model: nn.Module, *inputs: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        out = model(*inputs)
    return [y.numpy() for y in (out if isinstance(out, tuple) else (out,))]


def arrays(*inputs: Tensor) -> list[np.ndarray]:
    return [x.numpy() for x in inputs]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


class Parallel(nn.ModuleDict):
    """Layers side by side, each with an input of its own."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.values(), inputs, strict=True))


ENGINES = ("literal", "openvino", "onnxruntime")


def far_off(y: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))


def biased(gain: float) -> nn.Module:
    """Convolutions and a linear layer of which one channel is little but its bias."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        model[2].weight[0].mul_(gain)
        model[2].bias[0] = 3.0
    return model


@pytest.mark.parametrize("precision", [W8A8, W2A8, Precision(8, 16)], ids=str)
@pytest.mark.parametrize("gain", [1e-5, 1e-37])
def test_a_bias_beside_small_weights_is_right_in_every_engine(gain, precision, path):
    x = torch.randn(1, 3, 8, 8)
    model = quantized(biased(gain), x, precision=precision)
    export_module(model, [x], path)
    (wanted,) = simulate(model, x)
    for engine in ENGINES:
        (y,) = open_engine(path, engine)(arrays(x))
        assert far_off(y, wanted) < 2e-3, engine  # a rounding that falls the other way


def test_only_the_channel_with_the_large_bias_gets_coarser():
    layer = quantized(biased(1e-5), torch.randn(1, 3, 8, 8))[2]
    (grid,) = layer.input_params
    scale = layer.weight_params.scale.flatten()
    codes, coarser = fit_bias(layer.weight_codes, scale, 0, grid, layer.bias)
    torch.testing.assert_close(codes[1:], layer.weight_codes[1:], rtol=0, atol=0)
    torch.testing.assert_close(coarser[1:], scale[1:], rtol=0, atol=0)
    assert 3 / (scale[0] * grid.scale) > 2**31 > 3 / (coarser[0] * grid.scale)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_sum_that_leaves_32_bits_is_float_and_says_so(target, path):
    rows = 140_000
    model = nn.Sequential(nn.Linear(rows, 2), nn.Linear(2, 2))
    nn.init.constant_(model[0].weight, 1e-3)
    x = torch.ones(1, rows)
    model = quantized(model, x)
    assert int(model[0].weight_codes[0].sum()) * 255 > 2**31
    with pytest.warns(UserWarning, match=r"0 is float in the file: sums of 140000 products"):
        export_module(model, [x], path, target=target)
    assert read(path).card.layers == {"0": "float", "1": "W8A8"}
    first, second = lint(path)
    assert first.reason is not None and "32 bits" in first.reason
    assert second.precision == "W8A8"
    with torch.no_grad():
        wanted = model[1](model[0].wrapped(x)).numpy()
    for engine in ENGINES:
        assert far_off(open_engine(path, engine)(arrays(x))[0], wanted) < 1e-2
    assert model[0].quantized


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.einsum = Einsum("bnk,bmk->bnm")
        self.matmul = MatMul()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.einsum(a, b) + self.matmul(a, b.mT)


@pytest.mark.parametrize(("terms", "stays"), [(33_000, "W8A8"), (33_100, "float")])
def test_a_product_of_activations_over_many_terms_is_float(terms, stays, path):
    assert (255 * 255 * terms > 2**31 - 1) == (stays == "float")
    a, b = torch.ones(1, 2, terms), torch.rand(1, 3, terms)
    model = quantized(Summed(), a, b)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        export_module(model, [a, b], path)
    assert read(path).card.layers == {"einsum": stays, "matmul": stays}
    told = [str(w.message) for w in caught if "float in the file" in str(w.message)]
    assert len(told) == (2 if stays == "float" else 0)


@pytest.mark.parametrize("precision", [Precision(8, 16), Precision(16, 8), W16A16], ids=str)
def test_layers_of_16_bits_keep_them_in_every_engine(precision, path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.Linear(64, 64)
    )
    x = torch.randn(1, 3, 8, 8)
    model = quantized(model, x, precision=precision)
    export_module(model, [x], path)
    (wanted,) = simulate(model, x)
    # 8 bits of either would be off by 1e-3 and more; a step of 16-bit inputs is 1.5e-5.
    bound = 1e-4 if precision.activations == 16 else 5e-4
    for engine in ENGINES:
        assert far_off(open_engine(path, engine)(arrays(x))[0], wanted) < bound, engine


def test_an_engine_that_computes_something_else_is_found_out(path, monkeypatch):
    monkeypatch.setattr(qdq, "fit_bias", lambda codes, scale, *_: (codes, scale))
    x = torch.randn(1, 3, 8, 8)
    model = quantized(biased(1e-5), x)
    with pytest.warns(UserWarning, match=r"model\.onnx: onnxruntime does not compute .*: 2 is off"):
        export_module(model, [x], path, target="onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_module(model, [x], path, target="onnxruntime", compare=False)
        export_module(model, [x], path, target="openvino")


@pytest.mark.parametrize("suffix", [".onnx", ".json"])
def test_a_weight_that_was_stored_otherwise_is_named(mixed, tmp_path, monkeypatch, suffix):
    model, inputs = mixed
    apply(model, BitPolicy({"*": W8A8}))
    init = qdq._IntegerLayer.__init__

    def wrong(self, layer, target):
        init(self, layer, target)
        if layer.name == "up":
            self.weight_int8[:, 2] = 0

    monkeypatch.setattr(qdq._IntegerLayer, "__init__", wrong)
    with pytest.warns(UserWarning, match=r"openvino does not compute .*: up is off"):
        export_module(model, inputs, tmp_path / f"model{suffix}")


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_models_of_another_float_type_are_simulated_and_not_exported(dtype, path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    plain = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)).to(dtype), x.to(dtype))
    with torch.no_grad():
        y = model(x.to(dtype))
    assert y.dtype == dtype
    assert far_off(y.float().numpy(), plain(x).detach().numpy()) < 0.02
    with pytest.raises(BevquantError, match=r"0\..*weight is .*: call model\.float\(\)"):
        export_module(model, [x.to(dtype)], path)
    assert not path.exists()


LAYERS = {
    "conv": (nn.Conv2d(8, 16, 3, padding=1), (2, 8, 9, 9)),
    "strided_conv_of_odd_channels": (nn.Conv2d(5, 16, 3, 2), (2, 5, 9, 9)),
    "patch_embedding": (nn.Conv2d(3, 24, 4, 4), (1, 3, 16, 16)),
    "conv1d": (nn.Conv1d(8, 12, 1), (2, 8, 30)),
    "linear_on_rows": (nn.Linear(18, 12), (40, 18)),
    "linear_on_maps": (nn.Linear(16, 12), (2, 5, 6, 16)),
    "linear_without_bias": (nn.Linear(16, 12, bias=False), (2, 7, 16)),
}


def test_a_layer_computes_what_was_simulated(path):
    torch.manual_seed(0)
    inputs = [on_grid(*shape) for _, shape in LAYERS.values()]
    model = quantized(Parallel({name: layer for name, (layer, _) in LAYERS.items()}), *inputs)
    export_module(model, inputs, path)
    expected = simulate(model, *inputs)
    for engine, integer_layers in (("literal", ()), ("openvino", tuple(LAYERS))):
        opened = open_engine(path, engine)
        assert opened.precisions == dict.fromkeys(LAYERS, "W8A8")
        assert opened.integer_layers == integer_layers
        for name, y, wanted in zip(LAYERS, opened(arrays(*inputs)), expected, strict=True):
            atol = 2e-6 * np.abs(wanted).max()
            np.testing.assert_allclose(y, wanted, atol=atol, err_msg=f"{engine}: {name}")


def test_a_linear_layer_is_integer_arithmetic(path):
    torch.manual_seed(0)
    widths = {f"w{bits}": bits for bits in (2, 3, 4, 6, 8)}
    model = Parallel({name: nn.Linear(32, 20) for name in widths})
    inputs = [on_grid(50, 32) for _ in widths]
    policy = BitPolicy({name: Precision(bits, 8) for name, bits in widths.items()})
    quantized(model, *inputs, precision=policy)
    export_module(model, inputs, path)
    outputs = open_engine(path)(arrays(*inputs))
    for x, y, layer, bits in zip(inputs, outputs, model.values(), widths.values(), strict=True):
        scale = layer.weight_params.scale.numpy().reshape(-1, 1)
        low, high = (-2, 1) if bits == 2 else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        codes = np.rint(layer.weight.detach().numpy() / scale).clip(low, high).astype(np.int64)
        products = np.rint(x.numpy() / STEP).astype(np.int64) @ codes.T
        wanted = products * STEP * scale.T + layer.bias.detach().numpy()
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5, err_msg=f"{bits} bits")


def test_a_product_of_activations_keeps_its_steps(path):
    a, b = on_grid(2, 5, 8), on_grid(2, 8, 6) / 2
    model = quantized(Product(), a, b)
    export_module(model, [a, b], path)
    for engine in ("openvino", "literal"):
        (y,) = open_engine(path, engine)(arrays(a, b))
        (expected,) = simulate(model, a, b)
        np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max())


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    inputs = on_grid(2, 3, 8, 8), torch.randint(0, 128, (30,))
    return quantized(Mixed(), *inputs), inputs


@pytest.mark.parametrize(
    "rules",
    [
        {"*": W8A8},
        {"*": W4A8, "conv": W8A8, "left": Precision(2, 8)},
        {"*": W8A8, "up": W16A16, "right": None},
    ],
)
def test_a_network_computes_what_was_simulated(rules, mixed, path):
    model, inputs = mixed
    apply(model, BitPolicy(rules))
    export_module(model, inputs, path, dynamic_shapes=({}, {0: torch.export.Dim("rows")}))
    onnx.checker.check_model(onnx.load(path), full_check=True)
    expected = simulate(model, *inputs)
    literal = open_engine(path, "literal")(arrays(*inputs))
    for y, wanted in zip(literal, expected, strict=True):
        # PyTorch and ONNX Runtime add up in an order that depends on the processor, so that a
        # rounding to 16 bits, a step of 1/65535 of a range, may fall the other way.
        step = 2 / 65535 if W16A16 in rules.values() else 0.0
        np.testing.assert_allclose(y, wanted, atol=(1e-5 + step) * np.abs(wanted).max())
        assert np.mean(np.abs(y - wanted)) < 1e-6 * np.abs(wanted).max()
    opened = open_engine(path)
    for y, wanted in zip(opened(arrays(*inputs)), expected, strict=True):
        # Roundings of inner activations may fall the other way; a step is 1/255 of a range.
        assert np.abs(y - wanted).max() < 0.03 * np.abs(wanted).max()
        assert np.abs(y - wanted).mean() < 0.002 * np.abs(wanted).max()
    integer = {name for name, bits in opened.precisions.items() if bits.endswith("A8")}
    assert set(opened.integer_layers) == integer
    for rows in (1, 100, 0):
        shapes = [y.shape for y in opened(arrays(inputs[0], torch.arange(rows)))]
        assert shapes == [(rows, 5), expected[1].shape]


def test_a_product_that_is_an_output_is_known_to_be_integer_with_vnni(mixed, path, monkeypatch):
    monkeypatch.setattr(run_openvino, "has_vnni", lambda: True)
    model, inputs = mixed
    apply(model, BitPolicy({"*": W8A8}))
    export_module(model, inputs, path, compare=False)
    assert open_engine(path).integer_layers == ("conv", "up", "left", "right", "out")


def test_export_tells_precisions_and_leaves_the_model_as_it_was(mixed, path):
    model, inputs = mixed
    apply(model, BitPolicy({"*": W4A8, "out": None}))
    model.train()
    modules = dict(model.named_modules())
    export_module(model, inputs, path)
    expected = dict.fromkeys(("conv", "up", "left", "right"), "W4A8") | {"out": "float"}
    assert read(path).card.layers == expected
    assert dict(model.named_modules()) == modules
    assert model.training
    assert "forward" not in vars(model)
    model.eval()


def test_a_float_network_is_exported_as_it_is(path):
    torch.manual_seed(0)
    model, inputs = Mixed().eval(), (torch.randn(2, 3, 8, 8), torch.arange(9))
    export_module(model, inputs, path, metadata={"note": "hello"})
    opened = open_engine(path)
    assert opened.precisions == {}
    assert opened.card.metadata["note"] == "hello"
    for y, wanted in zip(opened(arrays(*inputs)), simulate(model, *inputs), strict=True):
        np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_weights_take_the_bytes_of_their_bits(path):
    widths = {f"w{bits}": bits for bits in (16, 8, 4, 2)}
    model = Parallel({name: nn.Linear(256, 256, bias=False) for name in widths})
    inputs = [torch.randn(4, 256) for _ in widths]
    policy = BitPolicy({name: Precision(bits, 8) for name, bits in widths.items()})
    quantized(model, *inputs, precision=policy)
    export_module(model, inputs, path)
    stored = {tensor.name: len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer}
    for name, bits in widths.items():
        assert stored[f"{name}.weight_int{bits}"] == 256 * 256 * bits // 8
    scales = 4 * 4 * 256
    weights = 256 * 256 * sum(widths.values()) // 8
    assert weights + scales < path.stat().st_size < weights + scales + 4000


def test_a_scheme_that_no_engine_runs_in_integers_is_refused(path):
    x = torch.randn(1, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    quantize(model, W8A8, THESIS)
    calibrate(model, [x])
    with pytest.raises(BevquantError, match="DEPLOY"):
        export_module(model, [x], path)
    assert not path.exists()


@pytest.mark.parametrize("precision", [W2A8, W4A8, W8A8], ids=str)
def test_reconstructed_layers_compute_what_was_simulated(path, precision):
    torch.manual_seed(0)
    inputs = [on_grid(*shape) for _, shape in LAYERS.values()]
    model = Parallel({name: layer for name, (layer, _) in LAYERS.items()})
    quantized(model, *inputs, precision=precision)
    plain = simulate(model, *inputs)
    reconstruct(model, [inputs], lambda model, batch: model(*batch))
    export_module(model, inputs, path)
    expected = simulate(model, *inputs)
    for engine in ("literal", "openvino"):
        opened = open_engine(path, engine)
        learned = 0
        for name, y, before, wanted in zip(
            LAYERS, opened(arrays(*inputs)), plain, expected, strict=True
        ):
            atol = 3e-6 * np.abs(wanted).max()
            np.testing.assert_allclose(y, wanted, atol=atol, err_msg=f"{engine}: {name}")
            learned += not np.allclose(before, wanted, atol=atol)
        # A layer that rounding serves as well keeps its rounding.
        assert learned >= len(LAYERS) / 2


@pytest.mark.parametrize("large", [1, 5])
def test_a_transposed_convolution_in_groups_shares_scales_between_them(path, large):
    """Its bias has an entry for each channel of each group; any of them may be the large one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, 2, groups=2)).eval()
    with torch.no_grad():
        model[0].weight[:, large % 4].mul_(1e-6)
        model[0].bias[large] = 5.0
    x = torch.rand(1, 4, 5, 5)
    quantized(model, x, precision=W8A8)
    export_module(model, [x], path)
    wanted = simulate(model, x)[0]
    for engine in ("literal", "openvino", "onnxruntime"):
        (y,) = open_engine(path, engine)(arrays(x))
        np.testing.assert_allclose(y, wanted, atol=1e-5, err_msg=engine)
