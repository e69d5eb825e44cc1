"""The engines that a file can be made for, and what each of them wants."""

from collections.abc import Mapping
from dataclasses import dataclass

from bevquant.deploy import rules
from bevquant.deploy.card import TargetName
from bevquant.deploy.rules import Rule
from bevquant.errors import BevquantError
from bevquant.quant.size import STORED_BITS
from bevquant.quant.spec import DEPLOY, SYMMETRIC, Scheme


@dataclass(frozen=True)
class Target:
    """An engine.

    Attributes:
        name: what it is called on the command line.
        scheme: that a model must have been quantized with.
        weight_bits: that weights are stored in; others take the room of the next more.
        moves_codes: whether operators that only move elements move codes; floats otherwise.
        rules: what keeps a product from running in integers.
        note: what a reader of any table about it must know.
    """

    name: TargetName
    scheme: Scheme
    weight_bits: tuple[int, ...]
    moves_codes: bool
    rules: tuple[Rule, ...]
    note: str = ""

    @property
    def scheme_name(self) -> str:
        """What the scheme is called in Python."""
        return "SYMMETRIC" if self.scheme is SYMMETRIC else "DEPLOY"


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "openvino",
            DEPLOY,
            STORED_BITS,
            moves_codes=True,
            rules=(
                rules.quantized,
                rules.at_most_8_bits,
                rules.one_weight,
                rules.transposed_from_zero,
            ),
        ),
        Target(
            "onnxruntime",
            DEPLOY,
            STORED_BITS,
            moves_codes=True,
            rules=(
                rules.quantized,
                rules.at_most_8_bits,
                rules.not_transposed,
                rules.quantized_output,
            ),
        ),
        Target(
            "tensorrt",
            SYMMETRIC,
            (8,),
            moves_codes=False,
            rules=(
                rules.quantized,
                rules.at_most_8_bits,
                rules.symmetric,
                rules.int8_weights,
                rules.adjacent_pairs,
            ),
            note="by TensorRT's documented rules; not run on TensorRT",
        ),
        Target(
            "literal",
            DEPLOY,
            STORED_BITS,
            moves_codes=True,
            rules=(rules.never,),
            note="the reference that engines are compared with, not one to deploy on",
        ),
    )
}
"""Targets by name."""


def target_of(name: str) -> Target:
    """Return the target that is called ``name``.

    Raises:
        BevquantError: there is none.
    """
    if name not in TARGETS:
        raise BevquantError(f"target: {name!r} is none of {', '.join(TARGETS)}")
    return TARGETS[name]
