"""Running a network float and quantized, and comparing module by module."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.quant.diagnostics.fidelity import FidelityMeter
from bevquant.quant.layers import QuantModule
from bevquant.quant.outputs import floating_tensors
from bevquant.quant.running import Forward

_SAMPLE = 1 << 16
"""Elements of a tensor that are compared: enough for a ratio of sums, and little to keep."""


@dataclass
class Track:
    """What was seen of one module.

    Attributes:
        finite: whether all its outputs are.
        input: quantized against float.
        output: quantized against float.
        kept: samples of inputs and outputs of the float calls on the present batch.
    """

    finite: bool = True
    input: FidelityMeter = field(default_factory=FidelityMeter)
    output: FidelityMeter = field(default_factory=FidelityMeter)
    kept: list[tuple[list[Tensor], list[Tensor]]] = field(default_factory=list)


class Streams:
    """Follows a float and a quantized pass over the same batches.

    Attributes:
        names: dotted path of each module that is watched: layers, and others without
            children.
        tracks: what was seen, in order of the first calls.
        broken: the first module whose output was not finite, if any.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in _watched(model)}
        self.tracks: dict[nn.Module, Track] = {}
        self.broken: nn.Module | None = None

    def run(self, model: nn.Module, batch: Any, forward: Forward, reference: bool) -> None:
        """Run one batch: first float, as the reference, then quantized."""
        calls: dict[nn.Module, int] = {}
        inputs: dict[nn.Module, list[Tensor]] = {}

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            # Before the call: a module may work in place.
            inputs[module] = [_sample(x) for x in floating_tensors([*args, *kwargs.values()])]

        def leave(module: nn.Module, _: Any, output: Any) -> None:
            track = self.tracks.setdefault(module, Track())
            tensors = floating_tensors(output)
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                track.finite = False
                self.broken = self.broken or module
            pair = inputs.pop(module), [_sample(tensor) for tensor in tensors]
            position = calls.get(module, 0)
            calls[module] = position + 1
            if reference:
                track.kept[position:] = [pair]
            elif position < len(track.kept):
                _compare(track.input, pair[0], track.kept[position][0])
                _compare(track.output, pair[1], track.kept[position][1])

        with hooked(self.names, enter, leave):
            forward(model, batch)


@contextmanager
def hooked(modules: Iterable[nn.Module], enter: Any, leave: Any) -> Iterator[None]:
    """Call ``enter(module, args, kwargs)`` and ``leave(module, args, output)`` around modules."""
    hooks = []
    for module in modules:
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside = None
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        inside = f"{name}." if isinstance(module, QuantModule) else None
        if inside or not any(True for _ in module.children()):
            yield name, module


def _sample(tensor: Tensor) -> Tensor:
    """Return the same elements of every tensor of the same size."""
    flat = tensor.detach().flatten()
    if flat.numel() <= _SAMPLE:
        return flat.clone()
    generator = torch.Generator().manual_seed(flat.numel())
    indices = torch.randint(flat.numel(), (_SAMPLE,), generator=generator)
    return flat[indices.to(flat.device)]


def _compare(meter: FidelityMeter, quantized: list[Tensor], reference: list[Tensor]) -> None:
    """Take a pair into account unless the number of elements depends on what was computed."""
    if [len(x) for x in quantized] == [len(x) for x in reference] and reference:
        meter.update(quantized, reference)
