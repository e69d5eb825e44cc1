"""Sparse convolution against torch's dense 3-D convolution."""

import pytest
import torch
import torch.nn.functional as F

from bevquant.models.bevfusion.config import Triple
from bevquant.models.bevfusion.sparse import (
    Pairs,
    Sites,
    SparseConv3d,
    strided_pairs,
    submanifold_pairs,
)

BATCH = 2
CASES = [
    ((5, 6, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((6, 6, 5), (3, 3, 3), (2, 2, 2), (1, 1, 0)),
    ((6, 5, 7), (1, 1, 3), (1, 1, 2), (0, 0, 0)),
]


def random_sites(shape: Triple, count: int, seed: int) -> Sites:
    generator = torch.Generator().manual_seed(seed)
    cells = BATCH * shape[0] * shape[1] * shape[2]
    return Sites(torch.randperm(cells, generator=generator)[:count].sort().values, shape)


def dense(sites: Sites, features: torch.Tensor) -> torch.Tensor:
    cells = BATCH * sites.shape[0] * sites.shape[1] * sites.shape[2]
    volume = features.new_zeros(cells, features.shape[1]).index_put((sites.keys,), features)
    return volume.view(BATCH, *sites.shape, -1).permute(0, 4, 1, 2, 3)


def dense_conv(
    conv: SparseConv3d, volume: torch.Tensor, stride: Triple, padding: Triple
) -> torch.Tensor:
    """Return [cells, out]: the dense convolution, one row per output cell."""
    y = F.conv3d(volume, conv.weight.permute(0, 4, 1, 2, 3), stride=stride, padding=padding)
    return y.permute(0, 2, 3, 4, 1).flatten(0, 3)


def check(
    conv: SparseConv3d, sites: Sites, out: Sites, pairs: Pairs, *, stride: Triple, padding: Triple
) -> None:
    features = torch.randn(len(sites.keys), 3, dtype=torch.double, requires_grad=True)
    expected = dense_conv(conv, dense(sites, features), stride, padding)[out.keys]
    by_pairs, by_table = conv(features, pairs), conv(features, pairs.table())
    torch.testing.assert_close(by_pairs, expected)
    torch.testing.assert_close(by_table, expected)
    gradient = torch.randn_like(expected)
    inputs = (features, conv.weight)
    wanted = torch.autograd.grad(expected, inputs, gradient)
    torch.testing.assert_close(torch.autograd.grad(by_pairs, inputs, gradient), wanted)


@pytest.mark.parametrize("count", [1, 60])
def test_submanifold(count: int) -> None:
    sites = random_sites((5, 6, 4), count, seed=count)
    conv = SparseConv3d(3, 4, (3, 3, 3)).double()
    check(conv, sites, sites, submanifold_pairs(sites), stride=(1, 1, 1), padding=(1, 1, 1))


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
def test_strided(shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> None:
    sites = random_sites(shape, 40, seed=1)
    out, pairs = strided_pairs(sites, kernel, stride, padding)
    ones = dense(sites, torch.ones(len(sites.keys), 1))
    reached = F.conv3d(ones, torch.ones(1, 1, *kernel), stride=stride, padding=padding)
    assert out.shape == tuple(reached.shape[2:])
    assert torch.equal(out.keys, reached.flatten().nonzero().squeeze(1))
    conv = SparseConv3d(3, 4, kernel).double()
    check(conv, sites, out, pairs, stride=stride, padding=padding)


def test_coordinates_invert_keys() -> None:
    sites = random_sites((5, 6, 4), 50, seed=2)
    frame, x, y, z = sites.coordinates()
    assert torch.equal(((frame * 5 + x) * 6 + y) * 4 + z, sites.keys)
