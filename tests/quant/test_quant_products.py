import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quant_nets import noise, seeded
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.inventory import layers, unquantized
from bevquant.quant.layers import QuantMatMul, quant_modules
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply, quantize, restore
from bevquant.quant.spec import W2A8, W8A8, W16A16, Precision


class Attention(nn.Module):
    """Attention in every spelling that people use."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).movedim(2, 0).transpose(2, 3)
        match self.spelling:
            case "@":
                return self.join((q @ k.mT).softmax(-1) @ v)
            case "matmul":
                return self.join(torch.matmul(torch.matmul(q, k.mT).softmax(-1), other=v))
            case "methods":
                return self.join(q.matmul(k.mT).softmax(-1).matmul(v))
            case "bmm":
                q, k, v = (y.flatten(0, 1) for y in (q, k, v))
                return torch.bmm(q.bmm(k.mT).softmax(-1), mat2=v).flatten(1)
            case "einsum":
                scores = torch.einsum("bhld,bhsd->bhls", q, k)
                return self.join(torch.einsum("bhls,bhsd->bhld", scores.softmax(-1), v))
            case "sdpa":
                return self.join(F.scaled_dot_product_attention(q, k, value=v, scale=1))
        raise ValueError(self.spelling)

    def join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(1)


SPELLINGS = ["@", "matmul", "methods", "bmm", "einsum", "sdpa"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_products_become_layers_and_go_again(spelling: str) -> None:
    model = seeded(nn.Sequential(Attention(spelling), nn.Flatten()))
    modules, state = dict(model.named_modules()), set(vars(model[0]))
    x = noise(3, 5, 8)
    with torch.no_grad():
        expected = model(x)
        quantize(model, W16A16, batch=x)
        torch.testing.assert_close(model(x), expected)
        stem = {"einsum": "0.einsum_0 0.einsum_1", "sdpa": "0.sdpa_0.scores 0.sdpa_0.mix"}
        names = stem.get(spelling, "0.matmul_0 0.matmul_1").split()
        assert [layer.name for layer in quant_modules(model)] == ["0.qkv", *names]
        calibrate(model, [x])
        assert [info.macs for info in layers(model)] == [3 * 5 * 8 * 24, *[3 * 2 * 5 * 5 * 4] * 2]
        assert not unquantized(model)
        nearly = model(x)
        coarse = apply(model, BitPolicy({"*": W16A16, names[1]: Precision(8, 4)}))(x)
        assert 0 < (nearly - expected).norm() < 1e-2 * (coarse - expected).norm()
        assert torch.equal(restore(model)(x), expected)
    assert dict(model.named_modules()) == modules
    assert set(vars(model[0])) == state
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_ranges_are_those_of_the_operands() -> None:
    model = seeded(nn.Sequential(Attention("@")))
    x = noise(3, 5, 8)
    quantize(model, W8A8, batch=x)
    calibrate(model, [x, x * 2])
    layer = model[0].matmul_0
    assert isinstance(layer, QuantMatMul)
    with torch.no_grad():
        q, k, _ = model[0].qkv.wrapped(x * 2).chunk(3, -1)
    for quantizer, operand in zip(layer.inputs, (q, k), strict=True):
        assert quantizer.ranges[8].maximum == operand.max()


class Everywhere(nn.Module):
    """Products in a loop, in a helper called twice, in a branch, of geometry, of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.weight = nn.Parameter(noise(4, 4))
        self.branch = False

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, rotation = batch
        y = self.a(rotation @ x)  # no parameter has had a part in either
        for _ in range(3):
            y = y @ self.b(x)
        y = rotation @ y
        y = product(product(y, self.b(y)), y)
        y = y @ self.weight @ self.weight.t()
        filled = torch.zeros(4, 4)
        filled[:2] = y[:2]
        y = filled @ y
        return y @ y if self.branch else y


def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def test_a_layer_is_a_place_in_the_code() -> None:
    model = seeded(Everywhere())
    batch = noise(4, 4), torch.linalg.qr(noise(4, 4, seed=1)).Q
    with torch.no_grad():
        expected = model(batch)
        quantize(model, W8A8, batch=batch)
        torch.testing.assert_close(model(batch), expected)
        calibrate(model, [batch])
    counted = {info.name: info.macs for info in layers(model) if info.kind == "matmul"}
    assert counted == {"matmul_0": 3 * 64, "matmul_1": 64, "matmul_2": 64, "matmul_3": 64}
    (left,) = unquantized(model)
    assert left.name == ""
    assert left.reason == f"its own code uses its parameters weight ({4 * 64} MACs)"


def test_a_product_that_the_batch_did_not_reach_runs_float_and_is_listed() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return y @ y if len(x) == 4 else y @ y.t()

    model = quantize(seeded(Branch()), W8A8, batch=noise(3, 4))
    calibrate(model, [noise(4, 4), noise(3, 4)])
    (entry,) = unquantized(model)
    assert "quantize's batch did not take (64 MACs)" in entry.reason


def test_products_without_a_batch_are_listed() -> None:
    model = quantize(seeded(nn.Sequential(Attention("sdpa"))), W8A8)
    calibrate(model, [noise(3, 5, 8)])
    (entry,) = unquantized(model)
    assert "given a batch, quantize makes layers" in entry.reason


def test_an_error_in_forward_leaves_nothing_switched_on() -> None:
    model = quantize(seeded(nn.Sequential(Attention("@"))), W8A8, batch=noise(3, 5, 8))
    with pytest.raises(RuntimeError):
        model(noise(3, 5, 7))
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_wrong_request_leaves_the_model_as_it_was() -> None:
    model = seeded(nn.Sequential(Attention("@"), nn.MultiheadAttention(8, 2)))
    modules = dict(model.named_modules())
    with pytest.raises(BevquantError, match="matches no layer"):
        quantize(
            model, BitPolicy({"nothing": W8A8}), batch=noise(3, 5, 8), forward=lambda m, x: m[0](x)
        )
    assert dict(model.named_modules()) == modules


def test_a_forward_of_ones_own_finds_the_products() -> None:
    def forward(net: nn.Module, batch: dict[str, Any]) -> Tensor:
        return net(batch["x"])

    model = seeded(nn.Sequential(Attention("@")))
    quantize(model, W8A8, batch={"x": noise(3, 5, 8)}, forward=forward)
    assert len(quant_modules(model)) == 3


def test_copies_and_pickles_keep_their_layers() -> None:
    x = noise(3, 5, 8)
    model = quantize(seeded(nn.Sequential(Attention("@"))), W8A8, batch=x)
    calibrate(model, [x])
    with torch.no_grad():
        expected = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), expected)
            assert not torch.equal(apply(twin, W2A8)(x), expected)
            assert torch.equal(model(x), expected)
            assert len(list(restore(twin).modules())) == 3
            twin(x)
        assert torch.equal(model(x), expected)
