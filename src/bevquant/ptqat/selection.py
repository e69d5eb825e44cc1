"""Which layers are trained: a measure of each, a cut, and the side of it that is taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from bevquant.errors import BevquantError
from bevquant.ptqat.cuts import Budget, Candidate, Cut, Quantile, Theta
from bevquant.ptqat.precheck import Granularity, Measure

PROMISE: Final = "promise"
AnyMeasure = Measure | Literal["promise"]


@dataclass(frozen=True)
class Rule:
    """How layers are selected.

    Attributes:
        cut: how many layers.
        measure: one of the pre-check's, each an error that grows as the output gets worse
            (see :meth:`~bevquant.ptqat.precheck.LayerError.score`), or ``"promise"``: what
            the task's loss could win by a layer, for each of its weights (see
            :func:`~bevquant.ptqat.promise.promises`).
        lowest: whether those with the lowest values are trained, or those with the highest.
        granularity: of the pre-check. Layers of a block have the same score: a quantile that
            ends within a block takes those that are called first.
        upstream: of the pre-check: whether all layers before are quantized too.

    Raises:
        BevquantError: an unknown measure or granularity.
    """

    cut: Cut
    measure: AnyMeasure = "mse"
    lowest: bool = True
    granularity: Granularity = "layer"
    upstream: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("measure", self.measure, (*get_args(Measure), PROMISE)),
            ("granularity", self.granularity, get_args(Granularity)),
        ):
            if value not in known:
                raise BevquantError(f"Rule: {value!r} is no {what}; choose from {', '.join(known)}")
        if self.measure == PROMISE and (self.granularity != "layer" or self.upstream):
            raise BevquantError("Rule: granularity and upstream are the pre-check's, not promise's")

    @property
    def reason(self) -> str:
        """What is true of the layers that are trained."""
        return self.cut.reason(self.measure, self.lowest)

    def select(self, candidates: Sequence[Candidate]) -> "Selection":
        """Return which of ``candidates`` are trained; they keep their order."""
        ordered = sorted(candidates, key=lambda each: each.score, reverse=not self.lowest)
        taken = {each.layer for each in self.cut.take(ordered, self.lowest)}
        choices = [
            Choice(each, True, self.reason)
            if each.layer in taken
            else Choice(each, False, f"not: {self.reason}")
            for each in candidates
        ]
        return Selection(self.measure, tuple(choices))


@dataclass(frozen=True)
class Choice:
    """What becomes of a layer.

    Attributes:
        candidate: the layer.
        trained: or else frozen.
        reason: why.
    """

    candidate: Candidate
    trained: bool
    reason: str


@dataclass(frozen=True)
class Selection:
    """Which layers are trained.

    Attributes:
        measure: what they were judged by.
        choices: one for each quantized layer, in order of the calls.
    """

    measure: str
    choices: tuple[Choice, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are trained."""
        return tuple(each.candidate.layer for each in self.choices if each.trained)

    @property
    def trained_parameters(self) -> int:
        """Number of weights and biases that are trained."""
        return sum(each.candidate.parameters for each in self.choices if each.trained)

    @property
    def parameters(self) -> int:
        """Number of weights and biases of all quantized layers."""
        return sum(each.candidate.parameters for each in self.choices)


PAPER = Rule(Theta())
"""Layers whose output has a mean squared error below 0.01 (arXiv 2508.10557)."""

INVERTED = Rule(Theta(), lowest=False)
"""All the others: the paper's ablation."""

EVERYTHING = Rule(Quantile(1.0))
"""Quantization-aware training of all layers."""

PROMISING = Rule(Budget(0.5), PROMISE, lowest=False)
"""The half of the parameters by which the task's loss can win most."""
