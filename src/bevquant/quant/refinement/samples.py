"""Samples of what a layer computes: some of its outputs, and the inputs that each is linear in."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantLayer

PROBED = 256
"""Inputs that one run of a layer reads off."""


def weight_rows(layer: QuantLayer, weight: Tensor) -> Tensor:
    """Return a weight as a matrix for each group, [G, N, K]."""
    rows = weight.movedim(layer.weight_axis, 0).flatten(1)
    return rows.reshape(groups(layer), -1, rows.shape[1])


def rows_weight(layer: QuantLayer, rows: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`weight_rows`; ``like`` has the shape of the weight."""
    shape = like.movedim(layer.weight_axis, 0).shape
    return rows.flatten(0, 1).reshape(shape).movedim(0, layer.weight_axis).contiguous()


def groups(layer: QuantLayer) -> int:
    """Return how many groups of output channels have inputs of their own."""
    return int(layer.wrapped.groups) if isinstance(layer.wrapped, _ConvNd) else 1


def linear_in_rows(layer: QuantLayer) -> bool:
    """Whether :func:`inputs_of` knows the layer: all but grouped transposed convolutions."""
    return not (isinstance(layer.wrapped, _ConvTransposeNd) and layer.wrapped.groups > 1)


def positions(layer: QuantLayer, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` different random positions, or all if there are no more; int64 [P].

    A position is an index into all axes of the output but that of the channels, flattened.
    """
    return split_positions(layer, output, count, generator)[0]


def split_positions(
    layer: QuantLayer, output: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return :func:`positions`, and as many others as there are, at most ``count``."""
    total = output.numel() // max(1, output.shape[_channel_axis(layer)])
    if total <= count:
        every = torch.arange(total, device=output.device)
        return every, every[:0]
    order = torch.randperm(total, generator=generator).to(output.device)
    return order[:count], order[count : 2 * count]


def outputs_of(layer: QuantLayer, output: Tensor, where: Tensor) -> Tensor:
    """Return the outputs at positions [P], group by group: [G, P, N]."""
    rows = output.movedim(_channel_axis(layer), -1)
    rows = rows if rows.ndim > 1 else rows[None]
    at = torch.unravel_index(where, rows.shape[:-1])
    parts = groups(layer)
    return rows[at].reshape(len(where), parts, rows.shape[-1] // parts).movedim(1, 0)


def inputs_of(layer: QuantLayer, where: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return what the outputs at positions [P] are linear in, [G, P, K].

    The output of group g at position p is ``inputs_of(...)[g, p] @ weight_rows(...)[g].T``
    plus the bias.
    """
    wrapped = layer.wrapped
    if isinstance(wrapped, nn.Linear):
        return input.flatten(0, -2)[where][None] if input.ndim > 1 else input[None, None]
    if isinstance(wrapped, _ConvNd) and not isinstance(wrapped, _ConvTransposeNd):
        return _patches(wrapped, input, where)
    if callable(known := getattr(wrapped, "inputs_of", None)):
        rows: Tensor = known(where, input, *args, **kwargs)
        return rows[None]
    return _probed(layer, where, input, *args, **kwargs)


def _patches(conv: _ConvNd, input: Tensor, where: Tensor) -> Tensor:
    """Gather the patches under a convolution's kernel; only those that are asked for."""
    dims = len(conv.kernel_size)
    if input.ndim == dims + 1:
        input = input[None]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(input, conv._reversed_padding_repeated_twice, mode=mode)
    sizes = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            padded.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True
        )
    ]
    frame, *corner = torch.unravel_index(where, (len(padded), *sizes))
    columns = []
    for offsets in itertools.product(*(range(kernel) for kernel in conv.kernel_size)):
        at = [
            start * stride + offset * dilation
            for start, offset, stride, dilation in zip(
                corner, offsets, conv.stride, conv.dilation, strict=True
            )
        ]
        columns.append(padded.movedim(1, -1)[frame, *at])
    # [P, C, kernel positions]: the order of the weight's axes but the first.
    patches = torch.stack(columns, -1)
    return patches.reshape(len(where), conv.groups, -1).movedim(1, 0)


def _probed(layer: QuantLayer, where: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Read the inputs off a layer of any sort: give it weights of which each picks one."""
    weight = weight_of(layer.wrapped)
    shape = weight.movedim(layer.weight_axis, 0).shape
    inputs = weight.numel() // shape[0]
    parts = []
    for start in range(0, inputs, PROBED):
        size = min(PROBED, inputs - start)
        rows = torch.eye(size, inputs, dtype=weight.dtype, device=weight.device)
        probe = rows.roll(start, 1).view(-1, *shape[1:]).movedim(0, layer.weight_axis)
        output = layer.run(probe, input, *args, bias=weight.new_zeros(size), **kwargs)
        picked = output.movedim(_channel_axis(layer), -1)
        parts.append(picked[torch.unravel_index(where, picked.shape[:-1])])
    return torch.cat(parts, 1)[None]


def _channel_axis(layer: QuantLayer) -> int:
    assert layer.kind.channel_axis is not None
    return layer.kind.channel_axis
