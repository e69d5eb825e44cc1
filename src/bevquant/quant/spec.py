"""What a quantized tensor looks like: bits, symmetry, granularity; and the usual choices."""

import re
from dataclasses import dataclass
from typing import Any

from bevquant.errors import BevquantError

WEIGHT_BITS = (2, 3, 4, 6, 8, 16)
ACTIVATION_BITS = (4, 8, 16)


@dataclass(frozen=True)
class PerTensor:
    """One scale and zero point for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """One scale and zero point for each index along one axis.

    Attributes:
        axis: counted from the end (negative), so that it means the same axis with and
            without leading batch dimensions.
    """

    axis: int


@dataclass(frozen=True)
class PerGroup:
    """One scale and zero point for each run of inputs of each output channel of a weight.

    Attributes:
        size: inputs that share a scale; the last run of a channel may be shorter.
        axis: output channels, counted from the end.
        input_axis: input channels, counted from the end.
    """

    size: int
    axis: int
    input_axis: int


Granularity = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True)
class QuantSpec:
    """The integer grid of a tensor, but for its scale and zero point.

    Attributes:
        bits: 2..16.
        symmetric: signed codes with zero point 0; otherwise unsigned codes, any zero point.
        granularity: what shares one scale.
    """

    bits: int
    symmetric: bool
    granularity: Granularity

    @property
    def quant_min(self) -> int:
        """Smallest code.

        Symmetric codes leave out ``-2^(bits-1)``: the grid is then symmetric indeed. At 2
        bits that would leave three levels, so all four, -2..1, are used.
        """
        if not self.symmetric:
            return 0
        return -2 if self.bits == 2 else -self.quant_max

    @property
    def quant_max(self) -> int:
        """Largest code."""
        return (1 << (self.bits - self.symmetric)) - 1


@dataclass(frozen=True)
class Precision:
    """Bits of a layer's weights and of its input activations; written ``W4A8``.

    Raises:
        BevquantError: a bit-width that is not supported.
    """

    weights: int
    activations: int

    def __post_init__(self) -> None:
        for what, bits, known in (
            ("weights", self.weights, WEIGHT_BITS),
            ("activations", self.activations, ACTIVATION_BITS),
        ):
            if bits not in known:
                raise BevquantError(f"precision: {bits} bits for {what}; choose one of {known}")

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"

    @classmethod
    def of(cls, value: Any) -> "Precision":
        """Return a precision from itself or its text, such as ``"W4A8"``.

        Raises:
            BevquantError: it is neither.
        """
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, Precision):
            return value
        raise BevquantError(f"precision: {value!r} is none; give text such as 'W4A8', or bq.W4A8")

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """Return the precision that ``text`` such as ``"W4A8"`` names.

        Raises:
            BevquantError: ``text`` is no precision, or one that is not supported.
        """
        match = re.fullmatch(r"W(\d{1,2})A(\d{1,2})", text, re.ASCII)
        if match is None:
            raise BevquantError(f"precision: {text!r} is not of the form W4A8")
        return cls(int(match[1]), int(match[2]))


W2A8 = Precision(2, 8)
W3A8 = Precision(3, 8)
W4A8 = Precision(4, 8)
W8A8 = Precision(8, 8)
W16A16 = Precision(16, 16)


@dataclass(frozen=True)
class TensorScheme:
    """How one kind of tensor is quantized at any number of bits.

    Attributes:
        symmetric: see :class:`QuantSpec`.
        per_channel: one scale for each channel, or one for the tensor.
        group_size: of a weight per channel: input channels that share one scale; ``None``
            for all of them.

    Raises:
        BevquantError: groups of a tensor that is not quantized per channel, or of no inputs.
    """

    symmetric: bool
    per_channel: bool
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.group_size is not None and not (self.per_channel and self.group_size > 0):
            raise BevquantError(
                f"scheme: group_size {self.group_size} needs per_channel=True and at least 1 input"
            )

    def spec(self, bits: int, channel_axis: int | None, input_axis: int | None = None) -> QuantSpec:
        """Return the spec of a tensor; see :meth:`granularity`."""
        return QuantSpec(bits, self.symmetric, self.granularity(channel_axis, input_axis))

    def granularity(self, channel_axis: int | None, input_axis: int | None = None) -> Granularity:
        """Return what shares one scale.

        Args:
            channel_axis: of the channels (of a weight: the output channels), counted from the
                end; ``None`` if their number is not fixed: the tensor is quantized whole.
            input_axis: of a weight's input channels, counted from the end.
        """
        if not self.per_channel or channel_axis is None:
            return PerTensor()
        if self.group_size is not None and input_axis is not None:
            return PerGroup(self.group_size, channel_axis, input_axis)
        return PerChannel(channel_axis)


@dataclass(frozen=True)
class Scheme:
    """How the weights and the input activations of every layer are quantized.

    Raises:
        BevquantError: groups of activations.
    """

    weights: TensorScheme
    activations: TensorScheme

    def __post_init__(self) -> None:
        if self.activations.group_size is not None:
            raise BevquantError("scheme: group_size is for weights, not for activations")


THESIS = Scheme(
    weights=TensorScheme(symmetric=False, per_channel=True),
    activations=TensorScheme(symmetric=False, per_channel=True),
)
"""Asymmetric, per channel, weights (output channels) and activations (input channels).

No engine computes products of activations with a scale for each channel in integers:
this scheme is for simulation.
"""

DEPLOY = Scheme(
    weights=TensorScheme(symmetric=True, per_channel=True),
    activations=TensorScheme(symmetric=False, per_channel=False),
)
"""What integer kernels run: signed weights per output channel, unsigned activations per tensor."""

SYMMETRIC = Scheme(
    weights=TensorScheme(symmetric=True, per_channel=True),
    activations=TensorScheme(symmetric=True, per_channel=False),
)
"""Signed codes without zero points throughout: what TensorRT runs."""
