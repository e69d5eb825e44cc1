"""How many of the layers, ordered by a score, are taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bevquant.errors import BevquantError


@dataclass(frozen=True)
class Candidate:
    """A layer that could be trained.

    Attributes:
        layer: its name.
        parameters: number of its weights and biases.
        score: what it is judged by.
    """

    layer: str
    parameters: int
    score: float


class Cut(Protocol):
    """Says which layers are taken, and why."""

    def take(self, candidates: Sequence[Candidate], lowest: bool) -> Sequence[Candidate]:
        """Return those of ``candidates``, which come best first, that are taken.

        ``lowest`` says whether low scores are the better ones.
        """
        ...

    def reason(self, measure: str, lowest: bool) -> str:
        """Return what is true of the layers that are taken."""
        ...


@dataclass(frozen=True)
class Theta:
    """Scores below a threshold; from the other side, all others.

    Attributes:
        theta: 0.01 in the paper, of the absolute mean squared error.
    """

    theta: float = 0.01

    def __post_init__(self) -> None:
        if math.isnan(self.theta):
            raise BevquantError("Theta: the threshold is NaN")

    def take(self, candidates: Sequence[Candidate], lowest: bool) -> Sequence[Candidate]:
        """Return the layers on one side of the threshold."""
        return [each for each in candidates if (each.score < self.theta) == lowest]

    def reason(self, measure: str, lowest: bool) -> str:
        """Return the inequality."""
        return f"{measure} {'<' if lowest else '≥'} {self.theta:g}"


@dataclass(frozen=True)
class Quantile:
    """A share of the layers; 1 is quantization-aware training of all.

    Attributes:
        share: 0..1, rounded to whole layers.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        _check_share("Quantile", self.share)

    def take(self, candidates: Sequence[Candidate], lowest: bool) -> Sequence[Candidate]:
        """Return the first layers."""
        return candidates[: round(self.share * len(candidates))]

    def reason(self, measure: str, lowest: bool) -> str:
        """Return which layers those are."""
        return f"in the {_end(lowest)} {self.share:.0%} of the layers by {measure}"


@dataclass(frozen=True)
class Budget:
    """As many layers as a share of all parameters allows; one that no longer fits is passed over.

    So is one with a score of 0 where high scores are the better ones: it has nothing to win.

    Attributes:
        share: 0..1 of the weights and biases of all layers.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        _check_share("Budget", self.share)

    def take(self, candidates: Sequence[Candidate], lowest: bool) -> Sequence[Candidate]:
        """Return the layers that fit, the first first."""
        room = self.share * sum(each.parameters for each in candidates)
        taken = []
        for each in candidates:
            if each.parameters <= room and (lowest or each.score):
                taken.append(each)
                room -= each.parameters
        return taken

    def reason(self, measure: str, lowest: bool) -> str:
        """Return which layers those are."""
        return f"{_end(lowest)} {measure} that fits into {self.share:.0%} of the parameters"


@dataclass(frozen=True)
class Knee:
    """The layers up to the knee of the curve of sorted scores, on a log scale.

    The knee is where the curve is farthest below or above the chord between its ends
    (Satopaa et al., "Finding a Kneedle in a haystack", 2011); it belongs to the layers that
    are taken. A threshold that adapts to the network, which the paper leaves open.
    """

    def take(self, candidates: Sequence[Candidate], lowest: bool) -> Sequence[Candidate]:
        """Return the layers before the knee, and that at the knee."""
        if len(candidates) < 3:
            return candidates
        heights = [each.score for each in candidates]
        # Some are logarithms already; and what is 0 would dwarf all differences between others.
        above = [score for score in heights if score > 0]
        if min(heights) >= 0 and above:
            heights = [math.log(max(score, min(above))) for score in heights]
        slope = (heights[-1] - heights[0]) / (len(heights) - 1)
        distances = [abs(y - heights[0] - slope * x) for x, y in enumerate(heights)]
        return candidates[: distances.index(max(distances)) + 1]

    def reason(self, measure: str, lowest: bool) -> str:
        """Return which layers those are."""
        return f"{_end(lowest)} {measure}, up to the knee"


def _end(lowest: bool) -> str:
    return "lowest" if lowest else "highest"


def _check_share(what: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise BevquantError(f"{what}: share {share} is not within 0 and 1")
