"""What a quantized tensor looks like: bits, symmetry, granularity; and the usual choices."""

import re
from dataclasses import dataclass

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


Granularity = PerTensor | PerChannel


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
    def parse(cls, text: str) -> "Precision":
        """Return the precision that ``text`` such as ``"W4A8"`` names.

        Raises:
            BevquantError: ``text`` is no precision, or one that is not supported.
        """
        match = re.fullmatch(r"W(\d+)A(\d+)", text)
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
    """

    symmetric: bool
    per_channel: bool

    def spec(self, bits: int, channel_axis: int | None) -> QuantSpec:
        """Return the spec of a tensor whose channels lie along ``channel_axis``.

        ``None`` means that the tensor has no channels of fixed number: it is quantized
        per tensor.
        """
        return QuantSpec(bits, self.symmetric, self.granularity(channel_axis))

    def granularity(self, channel_axis: int | None) -> Granularity:
        """Return what shares one scale in a tensor with channels along ``channel_axis``."""
        if self.per_channel and channel_axis is not None:
            return PerChannel(channel_axis)
        return PerTensor()


@dataclass(frozen=True)
class Scheme:
    """How the weights and the input activations of every layer are quantized."""

    weights: TensorScheme
    activations: TensorScheme


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
