import pytest

from bevquant.errors import BevquantError
from bevquant.quant.spec import (
    DEPLOY,
    THESIS,
    W4A8,
    PerChannel,
    PerTensor,
    Precision,
    QuantSpec,
)


@pytest.mark.parametrize(
    ("bits", "symmetric", "codes"),
    [
        (2, True, (-2, 1)),
        (3, True, (-3, 3)),
        (8, True, (-127, 127)),
        (16, True, (-32767, 32767)),
        (2, False, (0, 3)),
        (8, False, (0, 255)),
    ],
)
def test_codes(bits: int, symmetric: bool, codes: tuple[int, int]) -> None:
    spec = QuantSpec(bits, symmetric, PerTensor())
    assert (spec.quant_min, spec.quant_max) == codes


def test_precision_reads_what_it_writes() -> None:
    assert str(W4A8) == "W4A8"
    for weights in (2, 3, 4, 6, 8, 16):
        for activations in (4, 8, 16):
            precision = Precision(weights, activations)
            assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize("text", ["W5A8", "W8A3", "W8", "8", "w8a8", "W8A8 "])
def test_a_wrong_precision_is_refused(text: str) -> None:
    with pytest.raises(BevquantError, match="precision"):
        Precision.parse(text)


def test_schemes_resolve_the_channel_axis() -> None:
    assert DEPLOY.weights.spec(4, -4) == QuantSpec(4, True, PerChannel(-4))
    assert DEPLOY.activations.spec(8, -3) == QuantSpec(8, False, PerTensor())
    assert THESIS.activations.spec(8, -3) == QuantSpec(8, False, PerChannel(-3))
    assert THESIS.activations.spec(8, None) == QuantSpec(8, False, PerTensor())
