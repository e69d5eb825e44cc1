"""What was found for one layer, as named tensors, and back: checked before it is used."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bevquant.errors import BevquantError
from bevquant.quant.affine import QuantParams, Range
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import Alphas, QuantLayer, QuantModule, Rounding
from bevquant.quant.spec import ACTIVATION_BITS, PerTensor, Precision

KEY = re.compile(
    r"(?P<layer>.*):(?P<field>range:[0-9]{1,9}:[0-9]{1,9}:(minimum|maximum)"
    r"|refined:[^:]+:(weight|inputs)|rounded:[^:]+:(codes|scale|zero_point|bias))",
    re.DOTALL,
)
"""Name of a tensor: that of its layer, and what it is of it."""


@dataclass(frozen=True)
class Findings:
    """All that calibration and what came after it found for a layer.

    Attributes:
        ranges: of each input, by bits.
        refined: factors, by precision.
        rounded: integers, by precision.
    """

    ranges: tuple[dict[int, Range], ...]
    refined: dict[Precision, Alphas]
    rounded: dict[Precision, Rounding]

    def give(self, layer: QuantModule) -> None:
        """Let ``layer`` use these instead of its own."""
        layer.forget()
        for quantizer, values in zip(layer.inputs, self.ranges, strict=True):
            quantizer.ranges = values
        for precision, alphas in self.refined.items():
            layer.adjust(precision, alphas)
        for precision, rounding in self.rounded.items():
            assert isinstance(layer, QuantLayer)
            layer.learn(precision, rounding)


def pack(layer: QuantModule) -> dict[str, Tensor]:
    """Return what was found for a layer; keys are paths with ``:`` between their parts."""
    packed = {}
    for index, quantizer in enumerate(layer.inputs):
        for bits, values in quantizer.ranges.items():
            packed[f"range:{index}:{bits}:minimum"] = values.minimum.clone()
            packed[f"range:{index}:{bits}:maximum"] = values.maximum.clone()
    for precision, alphas in layer.refined.items():
        packed[f"refined:{precision}:weight"] = alphas.weight.contiguous()
        packed[f"refined:{precision}:inputs"] = torch.tensor(alphas.inputs, dtype=torch.float64)
    for precision, rounding in layer.rounded.items() if isinstance(layer, QuantLayer) else ():
        start = f"rounded:{precision}"
        smallest = torch.int16 if precision.weights <= 8 else torch.int32
        packed[f"{start}:codes"] = rounding.codes.to(smallest).contiguous()
        packed[f"{start}:scale"] = rounding.params.scale.contiguous()
        packed[f"{start}:zero_point"] = rounding.params.zero_point.contiguous()
        packed[f"{start}:bias"] = rounding.bias.contiguous()
    return packed


def unpack(layer: QuantModule, packed: Mapping[str, Tensor]) -> Findings:
    """Undo :func:`pack`; ``layer`` is left alone.

    Raises:
        BevquantError: something is missing, or is not what it must be for this layer; the
            message names layer and field.
    """
    reader = _Reader(layer, packed)
    fields = [key.split(":") for key in packed]
    refined = dict.fromkeys(field[1] for field in fields if field[0] == "refined")
    rounded = dict.fromkeys(field[1] for field in fields if field[0] == "rounded")
    if rounded and not isinstance(layer, QuantLayer):
        raise BevquantError(f"{layer.name}: integers of a weight, and it has none")
    ranges: list[dict[int, Range]] = [{} for _ in layer.inputs]
    for index, bits in sorted({(int(f[1]), int(f[2])) for f in fields if f[0] == "range"}):
        if index >= len(ranges):
            raise BevquantError(f"{layer.name}: a range of input {index}, which it has not")
        ranges[index][bits] = reader.range(index, bits)
    for index, found in enumerate(ranges):
        missing = [str(bits) for bits in ACTIVATION_BITS if bits not in found]
        if found and missing:
            raise BevquantError(
                f"{layer.name}: input {index} has no range for {', '.join(missing)} bits"
            )
    return Findings(
        tuple(ranges),
        {Precision.parse(text): reader.alphas(text) for text in refined},
        {Precision.parse(text): reader.rounding(text) for text in rounded},
    )


class _Reader:
    """Takes checked tensors out of what was packed."""

    def __init__(self, layer: QuantModule, packed: Mapping[str, Tensor]) -> None:
        self._layer = layer
        self._packed = packed

    def range(self, index: int, bits: int) -> Range:
        """Return the range of an input."""
        field, shape = f"range:{index}:{bits}", self._input_shape(index)
        low, high = (
            self._take(f"{field}:{end}", torch.float32, shape) for end in ("minimum", "maximum")
        )
        if bool((low > high).any()):
            raise BevquantError(f"{self._layer.name}: {field}: its minimum is above its maximum")
        return Range(low, high)

    def alphas(self, precision: str) -> Alphas:
        """Return the factors for a precision."""
        field, layer = f"refined:{precision}", self._layer
        shape = self._packed[f"{field}:weight"].shape if f"{field}:weight" in self._packed else None
        allowed = [torch.Size()]
        if isinstance(layer, QuantLayer):
            allowed.append(self._grid_shape(layer, precision))
        if shape not in allowed:
            shape = allowed[-1]
        weight = self._take(f"{field}:weight", torch.float32, shape, _positive)
        inputs = self._take(
            f"{field}:inputs", torch.float64, torch.Size([len(layer.inputs)]), _positive
        )
        return Alphas(weight, tuple(inputs.tolist()))

    def rounding(self, text: str) -> Rounding:
        """Return the integers for a precision."""
        layer, precision, field = self._layer, Precision.parse(text), f"rounded:{text}"
        assert isinstance(layer, QuantLayer)
        weight = weight_of(layer.wrapped)
        shape = self._grid_shape(layer, text)
        spec = layer.scheme.weights.spec(precision.weights, None)
        low, high = spec.quant_min, spec.quant_max

        def codes(values: Tensor) -> str:
            inside = bool((values >= low).all() and (values <= high).all())
            return "" if inside else f"holds codes outside {low}..{high}"

        smallest = torch.int16 if precision.weights <= 8 else torch.int32
        grid = QuantParams(
            self._take(f"{field}:scale", torch.float32, shape, _positive),
            self._take(f"{field}:zero_point", torch.int32, shape, codes),
            low,
            high,
        )
        bias = self._take(f"{field}:bias", torch.float32, torch.Size([_outputs_of(layer)]))
        integers = self._take(f"{field}:codes", smallest, weight.shape, codes)
        return Rounding(integers.to(torch.int32), grid, bias)

    def _take(
        self,
        field: str,
        dtype: torch.dtype,
        shape: torch.Size | None,
        wrong: Callable[[Tensor], str] = lambda _: "",
    ) -> Tensor:
        """Return a tensor of finite values; ``wrong`` says what else is wrong with one."""
        value = self._packed.get(field)
        if value is None:
            problem = "is missing"
        elif value.dtype != dtype:
            problem = f"is {_plain(value.dtype)} instead of {_plain(dtype)}"
        elif shape is not None and value.shape != shape:
            problem = f"has shape {list(value.shape)} instead of {list(shape)}"
        elif not value.isfinite().all():
            problem = "holds NaN or infinity"
        else:
            problem = wrong(value)
        if value is None or problem:
            raise BevquantError(f"{self._layer.name}: {field} {problem}")
        return value

    def _input_shape(self, index: int) -> torch.Size | None:
        """Return the shape of an input's range; ``None`` if its channels are not known."""
        layer = self._layer
        granularity = layer.inputs[index].granularity
        if isinstance(granularity, PerTensor):
            return torch.Size()
        if not isinstance(layer, QuantLayer):
            return None
        weight = weight_of(layer.wrapped)
        groups = 1 if layer.weight_axis else int(getattr(layer.wrapped, "groups", 1))
        channels = weight.shape[layer.kind.input_axis] * groups
        return torch.Size((channels, *(1,) * (-granularity.axis - 1)))

    def _grid_shape(self, layer: QuantLayer, text: str) -> torch.Size:
        return layer.weight_grid(Precision.parse(text).weights, 1.0).scale.shape


def _outputs_of(layer: QuantLayer) -> int:
    """Return the number of output channels; a transposed convolution's weight has a group's."""
    groups = int(getattr(layer.wrapped, "groups", 1)) if layer.weight_axis == 1 else 1
    return int(weight_of(layer.wrapped).shape[layer.weight_axis]) * groups


def _positive(values: Tensor) -> str:
    return "" if bool((values > 0).all()) else "must be positive"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
