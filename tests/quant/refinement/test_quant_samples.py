import pytest
import torch
from quant_nets import GatherConv, noise, seeded
from torch import Tensor, nn

from bevquant import W8A8, quantize
from bevquant.quant.layers import QuantLayer
from bevquant.quant.refinement.samples import (
    inputs_of,
    linear_in_rows,
    outputs_of,
    positions,
    rows_weight,
    weight_rows,
)

LAYERS = {
    "linear": (nn.Linear(5, 4), (3, 2, 5)),
    "linear, one row": (nn.Linear(5, 4), (5,)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2), (2, 3, 9)),
    "conv2d": (
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        (2, 3, 7, 8),
    ),
    "conv2d, no batch": (nn.Conv2d(3, 4, 3, padding=1, bias=False), (3, 5, 5)),
    "conv2d, same": (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 6, 5)),
    "conv2d, circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 6, 5)),
    "conv2d, groups": (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
    "conv2d, depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (1, 4, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=2), (1, 2, 4, 5, 6)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), (2, 3, 4, 4)),
}


def layer_of(module: nn.Module) -> QuantLayer:
    model = quantize(seeded(nn.Sequential(module)), W8A8)
    assert isinstance(model[0], QuantLayer)
    return model[0]


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_outputs_are_linear_in_the_sampled_inputs(name: str) -> None:
    module, shape = LAYERS[name]
    layer, x = layer_of(module), noise(*shape)
    output = layer(x)
    where = positions(layer, output, 6, torch.Generator().manual_seed(0))
    rows = weight_rows(layer, module.weight)
    bias = torch.zeros(rows.shape[:2]) if module.bias is None else module.bias.view(rows.shape[:2])
    computed = inputs_of(layer, where, x) @ rows.transpose(1, 2) + bias[:, None]
    assert len(where.unique()) == len(where) <= 6
    torch.testing.assert_close(computed, outputs_of(layer, output, where))
    assert torch.equal(rows_weight(layer, rows, module.weight), module.weight)


@torch.no_grad()
def test_a_layer_of_unknown_kind_is_probed() -> None:
    module = GatherConv(5, 4)
    layer = layer_of(module)
    features, table = noise(7, 5), torch.randint(0, 8, (7, 3))
    output: Tensor = layer(features, table=table)
    where = torch.tensor([6, 0, 2])
    computed = inputs_of(layer, where, features, table=table)[0] @ module.weight.flatten(1).t()
    torch.testing.assert_close(computed, output[where])
    assert module.weight.shape == (4, 3, 5)


def test_the_weight_is_back_after_probing_fails() -> None:
    module = GatherConv(5, 4)
    layer = layer_of(module)
    with pytest.raises(IndexError):
        inputs_of(layer, torch.tensor([0]), noise(7, 5), torch.full((1, 3), 99))
    assert module.weight.shape == (4, 3, 5)


def test_grouped_transposed_convolutions_are_not_sampled() -> None:
    assert not linear_in_rows(layer_of(nn.ConvTranspose2d(4, 4, 2, groups=2)))
    assert linear_in_rows(layer_of(nn.ConvTranspose2d(4, 4, 2)))


def test_all_positions_if_few() -> None:
    layer = layer_of(nn.Linear(2, 3))
    where = positions(layer, noise(4, 3), 9, torch.Generator().manual_seed(0))
    assert where.tolist() == [0, 1, 2, 3]
