"""Attention against torch.nn.MultiheadAttention."""

import torch

from bevquant.models.bevfusion.attention import MultiheadAttention


def test_equals_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    query, memory = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    expected, _ = theirs(query, memory, memory, need_weights=False)
    torch.testing.assert_close(ours(query, memory), expected)


def test_output_projection_is_called() -> None:
    module = MultiheadAttention(8, 2)
    calls = []
    module.out_proj.register_forward_hook(lambda *_: calls.append(1))
    module(torch.randn(1, 3, 8), torch.randn(1, 4, 8))
    assert calls
