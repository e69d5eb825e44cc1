"""Swin pieces against direct formulas."""

import pytest
import torch

from bevquant.models.bevfusion.swin import (
    PatchMerging,
    ShiftWindowMSA,
    WindowMSA,
    relative_position_index,
    shift_mask,
)


def test_relative_position_index_depends_on_the_offset_only() -> None:
    size = 3
    index = relative_position_index(size)
    seen: dict[tuple[int, int], int] = {}
    for i in range(size * size):
        for j in range(size * size):
            offset = (i // size - j // size, i % size - j % size)
            assert seen.setdefault(offset, int(index[i, j])) == int(index[i, j])
    assert sorted(seen.values()) == list(range((2 * size - 1) ** 2))
    # Query minus key, rows first: the convention of the public checkpoints.
    assert seen[(1 - size, 1 - size)] == 0
    assert seen[(1 - size, 2 - size)] == 1


def attention_by_hand(module: WindowMSA, x: torch.Tensor) -> torch.Tensor:
    """One window, one head at a time."""
    tokens, channels = x.shape
    width = channels // module.num_heads
    q, k, v = module.qkv(x).split(channels, -1)
    heads = []
    for h in range(module.num_heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / width**0.5
        for i in range(tokens):
            for j in range(tokens):
                row = module.relative_position_index[i, j]
                scores[i, j] += module.relative_position_bias_table[row, h]
        heads.append(scores.softmax(-1) @ v[:, part])
    return module.proj(torch.cat(heads, -1))


def test_window_attention() -> None:
    module = WindowMSA(8, 2, 2).double()
    x = torch.randn(3, 4, 8, dtype=torch.double)
    with torch.no_grad():
        expected = torch.stack([attention_by_hand(module, window) for window in x])
        torch.testing.assert_close(module(x, None), expected)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(6, 9), (5, 7), (2, 4)])
def test_shifted_windows_attend_only_to_their_neighbours(size: tuple[int, int], shift: int) -> None:
    """Recompute every token from the tokens that share its (shifted, padded) window."""
    window = 3
    module = ShiftWindowMSA(4, 1, window, shift, size).double()
    x = torch.randn(1, *size, 4, dtype=torch.double)
    rows, columns = (-(-side // window) * window for side in size)
    padded = torch.zeros(rows, columns, 4, dtype=torch.double)
    padded[: size[0], : size[1]] = x[0]
    expected = torch.zeros_like(padded)

    def region(position: int, side: int) -> tuple[int, bool]:
        """Window after the cyclic shift, and whether the token was wrapped around."""
        moved = (position - shift) % side
        return moved // window, shift > 0 and moved >= side - shift

    with torch.no_grad():
        for i in range(rows):
            for j in range(columns):
                here = (region(i, rows), region(j, columns))
                mates = [
                    (a, b)
                    for a in range(rows)
                    for b in range(columns)
                    if (region(a, rows), region(b, columns)) == here
                ]
                q, _, _ = module.w_msa.qkv(padded[i, j]).split(4)
                _, k, v = module.w_msa.qkv(torch.stack([padded[m] for m in mates])).split(4, -1)
                scores = k @ q / 2
                for n, (a, b) in enumerate(mates):
                    moved = [(p - shift) % s % window for p, s in ((i, rows), (j, columns))]
                    other = [(p - shift) % s % window for p, s in ((a, rows), (b, columns))]
                    row = module.w_msa.relative_position_index[
                        moved[0] * window + moved[1], other[0] * window + other[1]
                    ]
                    scores[n] += module.w_msa.relative_position_bias_table[row, 0]
                expected[i, j] = module.w_msa.proj(scores.softmax(0) @ v)
        torch.testing.assert_close(module(x)[0], expected[: size[0], : size[1]])


def test_mask_separates_what_the_shift_brought_together() -> None:
    mask = shift_mask((4, 4), 2, 1)
    assert mask.shape == (4, 4, 4)
    assert not mask[0].any()
    assert (mask[-1] == -100).sum() == 12  # four regions of one token each


def test_patch_merging_is_channel_major() -> None:
    module = PatchMerging(3)
    seen = []
    module.norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 4, 6, 3)
    module(x)
    unfolded = torch.nn.Unfold(2, stride=2)(x.permute(0, 3, 1, 2)).transpose(1, 2)
    assert torch.equal(seen[0].flatten(1, 2), unfolded)
