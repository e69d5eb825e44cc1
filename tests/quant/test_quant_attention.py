import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quant_nets import noise
from torch import Tensor, nn

import bevquant as bq
from bevquant.quant.attention import ExpandedAttention, ScaledDotProductAttention
from bevquant.quant.calibrate import calibrate
from bevquant.quant.inventory import layers, unquantized
from bevquant.quant.layers import QuantModule, quant_modules
from bevquant.quant.prepare import quantize, restore
from bevquant.quant.spec import W8A8, W16A16

PARTS = ["q_proj", "k_proj", "v_proj", "out_proj", "scores", "mix"]


def scrambled(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(noise(*parameter.shape, seed=parameter.numel()) / 2)
    return module.eval()


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other key and value sizes": {"kdim": 6, "vdim": 5},
    "other sizes, no bias": {"kdim": 6, "vdim": 5, "bias": False},
    "bias_k, bias_v": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True, "add_bias_kv": True, "batch_first": True},
}


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize(
    "mask", ["none", "bool", "float", "per head", "padding", "float padding", "both", "causal"]
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_computes_what_pytorch_computes(
    options: dict[str, Any], mask: str, weights: bool
) -> None:
    if mask == "causal" and "add_bias_kv" in options and not weights:
        pytest.skip("PyTorch masks what it appended then, but not where it returns the weights")
    attention = scrambled(nn.MultiheadAttention(8, 2, **options))
    batch, queries, keys = 3, 4, 5
    if mask == "causal":
        keys = queries
    q, k, v = (
        noise(batch, n, size, seed=n + size)
        for n, size in ((queries, 8), (keys, attention.kdim), (keys, attention.vdim))
    )
    if not attention.batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    kwargs: dict[str, Any] = {"need_weights": weights}
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(1)
    padded = torch.arange(keys) >= torch.tensor([[keys], [3], [2]])
    if mask in {"bool", "both"}:
        kwargs["attn_mask"] = ~allowed
    if mask == "float":
        kwargs["attn_mask"] = noise(queries, keys)
    if mask == "per head":
        kwargs["attn_mask"] = noise(batch * 2, queries, keys) > 1.2
    if mask in {"padding", "both"}:
        kwargs["key_padding_mask"] = padded
    if mask == "float padding":
        kwargs["key_padding_mask"] = noise(batch, keys)
    if mask == "causal":
        causal = nn.Transformer.generate_square_subsequent_mask(queries)
        kwargs |= {"attn_mask": causal, "is_causal": True}
    expanded = ExpandedAttention(attention)
    with torch.no_grad():
        actual, actual_weights = expanded(q, k, v, **kwargs)
        expected, expected_weights = attention(q, k, v, **kwargs)
        close(actual, expected)
        assert (actual_weights is None) == (expected_weights is None) == (not weights)
        if weights:
            close(actual_weights, expected_weights)
            each = {"average_attn_weights": False}
            close(expanded(q, k, v, **kwargs, **each), attention(q, k, v, **kwargs, **each))


@pytest.mark.parametrize("batch_first", [False, True])
def test_without_a_batch_axis(batch_first: bool) -> None:
    attention = scrambled(nn.MultiheadAttention(8, 2, batch_first=batch_first))
    q, k = noise(4, 8), noise(5, 8, seed=1)
    padding = torch.tensor([False, False, True, False, True])
    with torch.no_grad():
        for kwargs in ({}, {"key_padding_mask": padding}, {"need_weights": False}):
            close(ExpandedAttention(attention)(q, k, k, **kwargs), attention(q, k, k, **kwargs))


def test_a_query_without_a_key_attends_to_nothing() -> None:
    attention = scrambled(nn.MultiheadAttention(8, 2, bias=False))
    x = noise(3, 1, 8)
    mask = torch.eye(3).bool().roll(1, 0) | torch.tensor([[True], [False], [False]])
    with torch.no_grad():
        actual, weights = ExpandedAttention(attention)(x, x, x, attn_mask=mask)
        close(actual, attention(x, x, x, attn_mask=mask, need_weights=False)[0])
    assert not actual[0].any()
    assert not weights[0, 0].any()


def test_gradients_and_dropout_are_those_of_pytorch() -> None:
    attention = scrambled(nn.MultiheadAttention(8, 2, dropout=0.5)).train()
    x = noise(4, 3, 8)
    expanded = ExpandedAttention(attention)
    torch.manual_seed(0)
    attention(x, x, x)[0].square().sum().backward()
    torch.manual_seed(0)
    expanded(x, x, x)[0].square().sum().backward()
    parts = [layer.weight.grad for layer in (expanded.q_proj, expanded.k_proj, expanded.v_proj)]
    close(torch.cat(parts), attention.in_proj_weight.grad)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_scaled_dot_product_attention(options: dict[str, Any], mask: str) -> None:
    heads = 2 if "enable_gqa" in options else 4
    q, k, v = noise(2, 4, 5, 8), noise(2, heads, 6, 8, seed=1), noise(2, heads, 6, 3, seed=2)
    if mask != "none" and "is_causal" not in options:
        drawn = noise(5, 6)
        options = options | {"attn_mask": drawn if mask == "float" else drawn > 0}
    close(
        ScaledDotProductAttention()(q, k, v, **options),
        F.scaled_dot_product_attention(q, k, v, **options),
    )


class Detector(nn.Module):
    """Self- and cross-attention, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.MultiheadAttention(8, 2, batch_first=True)
        self.decode = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
        self.again = self.encode

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        x, memory = pair
        x = self.again(x, x, x, need_weights=False)[0]
        return self.decode(x.transpose(0, 1), memory, memory)[0]


def test_every_part_is_a_layer_and_restore_undoes_it() -> None:
    model = scrambled(Detector())
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    pair = noise(2, 4, 8), noise(5, 2, 6, seed=1)
    with torch.no_grad():
        expected = model(pair)
        quantize(model, W16A16)
        close(model(pair), expected)
        calibrate(model, [pair])
        names = {layer.name for layer in quant_modules(model)}
        assert names == {f"{name}.{part}" for name in ("encode", "decode") for part in PARTS}
        assert not unquantized(model)
        macs = {info.name: info.macs for info in layers(model)}
        assert macs["encode.k_proj"] == 2 * 4 * 8 * 8
        assert macs["decode.k_proj"] == 5 * 2 * 6 * 8
        assert macs["decode.scores"] == 2 * 2 * 4 * 5 * 4
        torch.testing.assert_close(model(pair), expected, rtol=1e-2, atol=1e-2)
        assert not torch.equal(model(pair), expected)
        restore(model)
        assert torch.equal(model(pair), expected)
    assert all(found is modules[name] for name, found in model.named_modules())
    assert all(found is parameters[name] for name, found in model.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_parameters_are_shared_and_come_back_from_a_copy_or_another_type() -> None:
    model = quantize(scrambled(Detector()), W8A8)
    original = sum(p.numel() for p in scrambled(Detector()).parameters())
    assert sum(p.numel() for p in model.parameters()) == original
    with torch.no_grad():
        for layer in quant_modules(model):
            if isinstance(layer.wrapped, nn.Linear):
                layer.wrapped.weight.mul_(2)
    twin = restore(copy.deepcopy(model).to(torch.bfloat16))
    restore(model)
    weight = scrambled(Detector()).encode.in_proj_weight * 2
    assert torch.equal(model.encode.in_proj_weight, weight)
    assert torch.equal(twin.encode.in_proj_weight, weight.bfloat16())
    assert twin.decode.q_proj_weight.dtype == torch.bfloat16


@pytest.mark.parametrize("padded", [False, True])
def test_a_transformer_encoder_takes_no_shortcut(padded: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2)).eval()
    x = noise(2, 5, 8)
    mask = torch.arange(5) >= torch.tensor([[5], [3]]) if padded else None

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net[0](x, src_key_padding_mask=mask)

    with torch.no_grad():
        expected = forward(model, x)
        quantize(model, W8A8)
        calibrate(model, [x], forward)
        assert len(quant_modules(model)) == 2 * (len(PARTS) + 2)
        assert all(module.quantized for module in quant_modules(model))
        assert {entry.kind for entry in unquantized(model)} == {"LayerNorm"}
        actual = forward(model, x)
        keep = slice(None) if mask is None else ~mask
        assert (actual - expected)[keep].abs().max() < 0.2
        assert not torch.equal(actual[keep], expected[keep])
        assert torch.equal(forward(restore(model), x), expected)
    assert model[0].use_nested_tensor


def test_a_transformer_decoder() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 16, norm_first=True)
    model = nn.Sequential(nn.TransformerDecoder(layer, 1)).eval()
    x, memory = noise(5, 2, 8), noise(7, 2, 8, seed=1)

    def forward(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return net[0](*batch)

    with torch.no_grad():
        expected = forward(model, (x, memory))
        quantize(model, W16A16)
        close(forward(model, (x, memory)), expected)
        calibrate(model, [(x, memory)], forward)
        torch.testing.assert_close(forward(model, (x, memory)), expected, rtol=1e-2, atol=1e-2)
    assert len(quant_modules(model)) == 2 * len(PARTS) + 2


def test_attention_that_is_no_longer_pytorchs_is_listed() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, x, x)[0]

    model = quantize(nn.Sequential(Own(8, 2), nn.Linear(8, 8)), W8A8)
    calibrate(model, [noise(3, 8)])
    reasons = {entry.name: entry.reason for entry in unquantized(model)}
    assert "overrides the forward of MultiheadAttention" in reasons["0"]
    assert "without calling it" in reasons["0.out_proj"]
    assert not isinstance(model[0], QuantModule | ExpandedAttention)


def test_gradients_are_finite_where_a_row_is_masked_everywhere() -> None:
    """As torch's are."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(4, 4, dtype=torch.bool)
            mask[2] = False
            q = self.project(x)
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(2, 3, 4, 8)
    model(x).square().sum().backward()
    weight = model.project.weight
    wanted, weight.grad = weight.grad, None
    bq.quantize(model, bq.W16A16, batch=x)
    bq.calibrate(model, [x])
    model(x).square().sum().backward()
    assert wanted is not None
    assert weight.grad is not None
    # The straight-through estimator stops the gradient of a value at the edge of its range.
    assert F.cosine_similarity(weight.grad.flatten(), wanted.flatten(), dim=0) > 0.9


def test_gradients_of_a_padded_sequence_are_finite() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, batch_first=True)}).eval()
    x, padding = torch.randn(2, 4, 8), torch.tensor([[False] * 4, [True] * 4])

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        output: Tensor = model["a"](x, x, x, key_padding_mask=padding)[0]
        return output

    bq.quantize(model, bq.W8A8)
    bq.calibrate(model, [x], forward)
    forward(model, x).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
