"""Attention against torch.nn.MultiheadAttention."""

import torch

from bevquant.models.bevfusion.attention import KeyValueAttention, MultiheadAttention


def test_equals_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    query, memory = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    expected, _ = theirs(query, memory, memory, need_weights=False)
    torch.testing.assert_close(ours(query, memory), expected)


def test_state_dict_is_torchs() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    ours, copy = MultiheadAttention(16, 4), MultiheadAttention(16, 4)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    copy.load_state_dict(ours.state_dict(), strict=True)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(copy.state_dict()[name], value)


def test_every_weight_is_a_layer_that_is_called() -> None:
    module = MultiheadAttention(8, 2)
    called = []
    for name, layer in module.named_children():
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    module(torch.randn(1, 3, 8), torch.randn(1, 4, 8))
    assert called == ["query_proj", "memory_proj", "out_proj"]
    assert not list(module.parameters(recurse=False))


def test_keys_and_values_apart_equal_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = KeyValueAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    copy = KeyValueAttention(16, 4)
    copy.load_state_dict(theirs.state_dict(), strict=True)
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    expected, _ = theirs(query, key, value, need_weights=False)
    torch.testing.assert_close(copy(query, key, value), expected)
